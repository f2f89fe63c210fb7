"""What the figures should be (issue 5): one process on a 2-core machine shared with broker and load generator."""

from __future__ import annotations

from bench.figures import Target

_RESUMES = "resumes.default"
TARGETS = (
    Target(what="resumes/s, sync default", of=_RESUMES, least=10_000),
    Target(what="resumes/s, sync always", of="resumes.always", least=10_000),
    Target(what="starts/s, sync default", of="starts.default", least=15_000),
    Target(what="resumes: worker CPU each, µs", of=f"cpu.{_RESUMES}", most=90),
    Target(what="resumes at 100/s: p50, ms", of="latency.default.at100.p50", most=2.0),
    Target(what="resumes at 100/s: p99, ms", of="latency.default.at100.p99", most=3.5),
    Target(what="resumes at 1,000/s: p99, ms", of="latency.default.at1000.p99", most=5.0),
    Target(what="resumes at 5,000/s: p99, ms", of="latency.default.at5000.p99", most=12.0),
    Target(what="resumes at 1 M waiting flows ÷ at 1 k", of="resumes.waiting1000000", to=_RESUMES, least=0.7),
    Target(what="resumes at 100 k waiting flows ÷ at 1 k", of="resumes.waiting100000", to=_RESUMES, least=0.7),
    Target(what="a tick with nothing due at 1 M waiting, ms", of="tick.idle1000000", most=0.1),
    Target(what="a tick with nothing due at 100 k waiting, ms", of="tick.idle100000", most=0.1),
    Target(what="memory for each waiting flow, B", of="standing.each", most=50),
    Target(what="ready with 1 M waiting flows, s", of="standing.ready1000000", most=2.0),
    Target(what="ready with 100 k waiting flows, s", of="standing.ready100000", most=2.0),
    Target(what="resumes ÷ the naive worker's", of=_RESUMES, to="peers.naive", least=12),
    Target(what="resumes ÷ faststream's", of=_RESUMES, to="peers.faststream", least=15),
    Target(what="resumes ÷ taskiq's", of=_RESUMES, to="peers.taskiq", least=15),
    Target(what="resumes ÷ Restate's", of=_RESUMES, to="peers.restate", least=4),
    Target(what="resumes ÷ DBOS's on SQLite", of=_RESUMES, to="peers.dbos", least=70),
    Target(what="p50 at 100/s ÷ Restate's", of="latency.default.at100.p50", to="peers.restate.p50", most=1.0),
)
