"""Make a configuration file to start from, with every setting commented out."""

from __future__ import annotations

from nats_taskflow.config.settings import settings
from nats_taskflow.config.show import to_toml

_HEAD = """# Settings of taskflow, worker and command line alike. A flag wins over an environment variable, that over this file.
# Everything is commented out and shows the default: take the # away from what you change.
# `taskflow config validate` says whether it is right, `taskflow config show --origin` what is in force and why.
# Name it, with --config or TASKFLOW_CONFIG: a file that merely lies in the working directory may say neither where to connect or listen,
# nor as whom. With a password in it: chmod 600.
"""
_TABLES = """
# Subjects that carry replies, with more to say than subjects.reply_topics has room for; one block for each (docs/waiting.md).
# [[replies]]
# subject = "agent.route.*"
# correlation = "auto"    # or "header:<name>", "body:<json pointer>", "subject"
# owners = ["*"]          # agents that may wait on it

# Which agents' flows may ask which delegates (`to` and `cancel_to`), one block for each. Where one is listed, all others are forbidden.
# [[delegates]]
# subject = "agent.billing.>"
# owners = ["kate"]       # agents, or "*" for all
"""


def template() -> str:
    """Return the file's text.

    It is valid as it is, and with every `# key =` line uncommented.
    """
    lines = [_HEAD]
    section = ""
    for setting in settings():
        head, _, name = setting.key.partition(".")
        if not name:
            continue
        if head != section:
            lines.append(f"\n[{head}]")
            section = head
        lines.append(f"# {setting.about.help}")
        lines.append(f"# {name} = {to_toml(setting.default, setting.about.absent)}")
    return "\n".join(lines) + "\n" + _TABLES
