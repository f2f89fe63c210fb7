"""List every invariant: number, promise, checks, and what to do where it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from nats_taskflow.store.invariants import damage, file, inbox, journal, outbox, published, tenancy, timers, usage, waits
from nats_taskflow.store.invariants.evidence import Evidence, FlowHistory
from nats_taskflow.store.invariants.ledger import Ledger


class CheckOfDatabase(msgspec.Struct, frozen=True):
    """A function over the whole database.

    `slow`: reads every page, so that `--quick` leaves it out.
    """

    look: Callable[[Evidence], Iterator[str]]
    slow: bool = False


class CheckOfFlow(msgspec.Struct, frozen=True):
    """A function over one flow after the other."""

    look: Callable[[FlowHistory], Iterator[str]]


class CheckOfStream(msgspec.Struct, frozen=True):
    """A function over the events or the dead letters that were published."""

    look: Callable[[Evidence, Ledger], Iterator[str]]
    letters: bool = False


class CheckOfEachStream(msgspec.Struct, frozen=True):
    """A function over one flow after the other, each with its published events."""

    look: Callable[[FlowHistory, Evidence, Ledger], Iterator[str]]


Check = CheckOfDatabase | CheckOfFlow | CheckOfStream | CheckOfEachStream

REPORT = (
    "keep a copy of the database (not with cp while a worker runs) and report it: "
    "this is a defect of the worker, or somebody else wrote to the file"
)
REPAIR = "stop the worker and restore the last good backup; `sqlite3 FILE .recover` salvages what can be read"
PUBLISH = "keep a copy and report it; subscribers that miss events can fold `history` of the flow instead"
CLIENTS = "tests/faults/client_invariants.py"
"""Compares the database with what clients know was acknowledged."""
PERMIT = "look who may publish where in NATS, and whose credentials were used; keep a copy and report it"


class Invariant(msgspec.Struct, frozen=True):
    """What always holds. `elsewhere`: the tests that show it where no database can."""

    number: str
    name: str
    promise: str
    checks: tuple[Check, ...]
    advice: str = REPORT
    elsewhere: tuple[str, ...] = ()


INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "I-1",
        "exactly one effect",
        "every accepted message has one outcome and took effect once, or not at all where its outcome says so",
        (CheckOfDatabase(inbox.has_one_effect), CheckOfFlow(inbox.says_what_is_kept)),
        elsewhere=(CLIENTS,),
    ),
    Invariant(
        "I-2",
        "no effect from nothing",
        "whatever changed a flow came from a message that is on record, and that somebody sent",
        (CheckOfDatabase(inbox.comes_from_a_message),),
        elsewhere=(CLIENTS,),
    ),
    Invariant(
        "I-3",
        "conflicts are visible",
        "another body under a used id is a conflict in the dead letters, never taken for a repeat",
        (CheckOfDatabase(inbox.conflicts_are_visible),),
    ),
    Invariant(
        "I-4",
        "acknowledged after the commit",
        "every message that was acknowledged to the broker has its outcome on disk",
        (CheckOfDatabase(published.everything_is_taken_in),),
    ),
    Invariant(
        "I-5",
        "repeats are told the same",
        "a repeated command is told, byte for byte, what the first was told",
        (CheckOfDatabase(inbox.repeats_are_told_the_same),),
    ),
    Invariant(
        "I-6",
        "doubts end one way",
        "an operation that nobody answered has happened whole, or not at all",
        (),
        elsewhere=(CLIENTS,),
    ),
    Invariant(
        "I-7",
        "the journal is contiguous",
        "a flow's journal has the places 1, 2, 3 … and the revisions 0, 1, 2 … up to those of its row",
        (CheckOfFlow(journal.is_contiguous),),
    ),
    Invariant(
        "I-8",
        "the journal gives the row",
        "folding a flow's journal gives exactly its row",
        (CheckOfFlow(journal.gives_the_row),),
        REPAIR,
    ),
    Invariant(
        "I-9",
        "only legal edges",
        "a flow takes only edges of the status table, only observed runs follow its end, and a requested cancellation stays requested",
        (CheckOfFlow(journal.takes_legal_edges),),
    ),
    Invariant(
        "I-10",
        "time goes forward",
        "what was asked for after something else was answered has the higher revision",
        (),
        elsewhere=(CLIENTS,),
    ),
    Invariant(
        "I-11",
        "each revision is written once",
        "no two changes of a flow have the same revision, and nobody is told that another one's is his",
        (CheckOfFlow(journal.revisions_are_written_once),),
        elsewhere=(CLIENTS,),
    ),
    Invariant(
        "I-12",
        "the file is whole",
        "SQLite's own checks pass, no row belongs to a flow that is not there, and the file says whose it is",
        (CheckOfDatabase(file.pages_are_whole, slow=True), CheckOfDatabase(file.references_hold), CheckOfDatabase(file.is_ours)),
        REPAIR,
    ),
    Invariant(
        "I-13",
        "a wait ends once",
        "each generation of a wait ends at most once, and its leaves close with it",
        (CheckOfFlow(waits.ends_once),),
    ),
    Invariant(
        "I-14",
        "no resume is lost",
        "whoever waits can be found, and no reply is held that an open wait would take",
        (CheckOfFlow(waits.can_be_found), CheckOfDatabase(waits.no_reply_is_left_lying)),
        "resume the flow by hand with what it waits for (`resume` with a `reason`); keep a copy and report it",
    ),
    Invariant(
        "I-15",
        "a reply ends its own wait",
        "a reply for one wait never ends another, not even the next one of the same flow",
        (CheckOfFlow(waits.is_ended_by_its_own_pair),),
    ),
    Invariant(
        "I-16",
        "outcomes add up",
        "the counters say what the rows say, of each agent too, and what is held is held by both",
        (CheckOfDatabase(inbox.outcomes_add_up), CheckOfDatabase(usage.adds_up)),
    ),
    Invariant(
        "I-17",
        "time is kept",
        "no timer fires and no deadline passes early or twice, and a parked flow is looked at when its wait says",
        (CheckOfFlow(timers.nothing_is_early), CheckOfFlow(timers.is_due_when_the_row_says)),
        "look whether the clock was set back; otherwise keep a copy and report it",
    ),
    Invariant(
        "I-18",
        "pairs are unique",
        "nobody shares a topic and correlation id with a wait of mode `one`",
        (CheckOfDatabase(waits.pairs_are_unique),),
    ),
    Invariant(
        "I-19",
        "one damaged flow stops nobody",
        "a flow whose row cannot be read is out of the way of every other flow's timer",
        (CheckOfFlow(damage.stops_nobody),),
        elsewhere=("tests/service/test_rules_of_damage.py",),
    ),
    Invariant(
        "I-20",
        "one row for each event",
        "every entry that is marked as published lies in the stream, and a request goes out for an open wait only",
        (CheckOfDatabase(outbox.requests_belong_to_their_wait), CheckOfEachStream(published.is_published)),
        PUBLISH,
    ),
    Invariant(
        "I-21",
        "no phantom events",
        "whatever is published was committed, and says what the journal says",
        (CheckOfEachStream(published.says_what_was_committed), CheckOfStream(published.comes_from_a_flow)),
        "was an older copy of the database put back? Then these events tell of what is lost; otherwise keep a copy and report it",
    ),
    Invariant(
        "I-22",
        "events are in order",
        "the events of a flow come as 1, 2, 3 …, and a repeat is byte-identical, under the same id",
        (CheckOfStream(published.is_in_order),),
        PUBLISH,
    ),
    Invariant(
        "I-23",
        "everything gets out",
        "no event or dead letter is passed over, and once nothing is in flight all of them are published",
        (CheckOfDatabase(outbox.everything_gets_out),),
        PUBLISH,
    ),
    Invariant(
        "I-24",
        "nothing needed is deleted",
        "neither a row that is not published nor a message that may come again is ever deleted",
        (CheckOfDatabase(inbox.what_is_needed_is_kept), CheckOfDatabase(outbox.nothing_unpublished_is_removed)),
    ),
    Invariant(
        "I-25",
        "one writer at a time",
        "once a worker has taken over, no row of an earlier one follows",
        (CheckOfDatabase(journal.epochs_never_go_back),),
        "look whether two workers had the same file, each its own lock: a copied or shared folder",
    ),
    Invariant(
        "I-26",
        "no message vanishes",
        "a message that came to nothing lies whole in the dead letters, and from there in their stream",
        (CheckOfDatabase(inbox.nothing_vanishes), CheckOfStream(published.dead_letters_are_out, letters=True)),
    ),
    Invariant(
        "I-27",
        "it goes on",
        "after a fault every flow that can advance does so within seconds; a run with too few effects is invalid",
        (),
        elsewhere=("tests/e2e/test_kills.py",),
    ),
    Invariant(
        "I-28",
        "it stays small",
        "memory, file descriptors, tasks and the log of the database stay within bounds",
        (),
        elsewhere=("tests/e2e/test_idle.py",),
    ),
    Invariant(
        "I-29",
        "agents stay among themselves",
        "an agent's commands, replies and events are about that agent's flows only",
        (
            CheckOfFlow(tenancy.acts_on_its_own),
            CheckOfDatabase(tenancy.waits_on_its_own_topic),
            CheckOfEachStream(published.is_told_to_its_own),
        ),
        PERMIT,
    ),
    Invariant(
        "I-30",
        "secrets stay secret",
        "no password, token or key appears in logs, metrics, events or errors",
        (),
        elsewhere=("tests/unit/test_config.py", "tests/e2e/test_kills.py"),
    ),
)
