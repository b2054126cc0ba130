"""One poisoned job among ten: the nine others must not notice, and its end must name its cause."""

from __future__ import annotations

import gzip
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from live_fault_try import Try, digest, jobs
from loramux_runtime.live.state.job_rows import OPEN
from loramux_runtime.live.watch.status import read_status

NINE: Final = 9
STEPS: Final = 40
POISON: Final = "poison"
MOST_DEATHS: Final = 2
ALONE: Final[dict[tuple[str, int], str]] = {}
"""Digests of the nine without a poisoned one, once they are known."""
RUN: Final = ("--max-resident", "4", "--hang-after", "15")
GROW: Final = (
    "import sys\nwith open(sys.argv[1], 'a') as f:\n  while True: f.write('{\"text\": \"more\"}\\n'); f.flush()\n"
)
ZERO: Final = os.makedev(1, 5)
TEMPLATE: Final = (
    "{% for m in messages %}{% if m['content'] == 'loop' %}{% for i in range(10**5) %}{% for j in range(10**5) %}"
    "{% endfor %}{% endfor %}{% endif %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
)


def arm(base: Path) -> None:
    """Give a base a tokenizer whose regular expression gives up, and a template that may loop."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: number for number, char in enumerate([*alphabet, "<s>", "</s>", "<pad>"])}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    split: Any = pre_tokenizers.Split(Regex("(z+z+)+y"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(base / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": TEMPLATE}
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **said}))


def nine_alone(base: Path) -> dict[tuple[str, int], str]:
    """Return the digests of the nine without a poisoned one; `base` is an armed base."""
    one = Try(base, {})
    one.submit(jobs(NINE, STEPS))
    one.run("--exit-when-idle", *RUN)
    code = one.wait(600)
    assert code == 0, one.said()
    found = {(job_id, STEPS): digest(one.state / "adapters" / job_id) for job_id in one.acknowledged}
    one.close()
    return found


def prepare(t: Try) -> None:
    """Arm the base of a try, and learn what the nine give without the poisoned one."""
    arm(t.folder / "base")
    if not ALONE:
        # every try has the same base
        ALONE.update(nine_alone(t.folder / "base"))
    t.whole = ALONE


# -- what is wrong with it: each takes the try, and returns fields of the job


def fields(found: dict[str, Any]) -> Callable[[Try], dict[str, Any]]:
    """Return what gives these fields of the job."""
    return lambda t: found


def file_of(name: str, make: Callable[[Path, Try], None]) -> Callable[[Try], dict[str, Any]]:
    """Return what gives the job a data file of its own."""

    def of(t: Try) -> dict[str, Any]:
        make(t.folder / name, t)
        return {"data": {"path": name}}

    return of


def _bomb(path: Path, t: Try) -> None:
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(b'{"text": "')
        for _ in range(5000):
            file.write(bytes(1 << 20).replace(b"\0", b"x"))
        file.write(b'"}\n')


def _grows(path: Path, t: Try) -> None:
    path.write_text('{"text": "begin"}\n')
    process = subprocess.Popen([sys.executable, "-c", GROW, str(path)])

    def end() -> None:
        process.kill()
        process.wait()

    t.undo(end)


def _regex(path: Path, t: Try) -> None:
    path.write_text(json.dumps({"text": "z" * 5000}) + "\n")


def _loops(path: Path, t: Try) -> None:
    chat = [{"role": "user", "content": "loop"}, {"role": "assistant", "content": "never"}]
    path.write_text(json.dumps({"messages": chat}) + "\n")


def _eats(path: Path, t: Try) -> None:
    with path.open("w") as file:
        file.write('[{"text": "row", "more": [')
        for _ in range(80):
            file.write("[]," * 1_000_000)
        file.write("[]]}]\n")


def poisoned(t: Try, what: Callable[[Try], dict[str, Any]], run: Sequence[str] = RUN) -> None:
    """Nine good jobs and the poisoned one, in one folder."""
    prepare(t)
    t.expect(t.submit(jobs(NINE, STEPS)).returncode == 0, "the nine cannot be submitted")
    job = {**jobs(1, STEPS)[0], "id": POISON, **what(t)}
    (t.folder / "poison.json").write_text(json.dumps({"jobs": [job]}))
    done = t.cli("submit", "poison.json", "--state", "state")
    if done.returncode:
        t.expect(done.returncode == 2, f"submit: exit {done.returncode}")
        t.expect("poison.json" in done.stderr, "the refusal does not name the file")
        t.found.said = "submit: " + done.stderr.strip().splitlines()[0].replace("loramux: ", "")
    t.run(*run)
    see(t)


def see(t: Try, *, goes_on: bool = False) -> None:
    """Wait until all have ended or are held, and see how (`goes_on`: the odd one may complete)."""
    t.until(lambda: all(row["state"] not in OPEN or row["state"] == "HELD" for row in t.rows()), "all end", 600)
    row = next((row for row in t.rows() if row["job_id"] == POISON), None)
    if row is not None:
        ended_well = row["state"] == "COMPLETED"
        t.expect(goes_on or not ended_well, "the poisoned job is COMPLETED")
        t.expect(row["reason"] or ended_well, "no reason")
        heard = next((line for line in t.said().splitlines() if f"no checkpoint of job {POISON}" in line), "")
        t.found.said = f"{row['state']}: {row['reason'] or heard.removeprefix('loramux: ')}"
    store = t.store()
    deaths = read_status(store)["restarts"]
    store.close()
    t.expect(deaths <= MOST_DEATHS, f"the process died {deaths} times")
    said = t.found.said
    t.stop()
    t.found.code, t.found.said = None, said
    t.count()


def checkpoint(t: Try, spoil: Callable[[Path], None]) -> None:
    """The checkpoint of one of ten that have begun is spoilt while no process runs."""
    prepare(t)
    t.submit(jobs(NINE, STEPS))
    job = {**jobs(1, STEPS)[0], "id": POISON, "steps": 400}
    (t.folder / "poison.json").write_text(json.dumps({"jobs": [job]}))
    t.cli("submit", "poison.json", "--state", "state")
    t.run(*RUN)
    saved = t.state / "checkpoints" / POISON
    t.until(lambda: saved.is_dir() and any(saved.rglob("*")), "it is saved")
    assert t.process is not None
    t.process.send_signal(signal.SIGTERM)
    t.wait()
    spoil(saved)
    t.run(*RUN)
    # every step is taken again, with the same bits: the log says so
    see(t, goes_on=True)
    t.expect(POISON in t.said(), "nobody says that the checkpoint is spoilt")


def _garbage(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(os.urandom(4096))


def _half(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def _pipes(folder: Path) -> None:
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        file.unlink()
        os.mkfifo(file)


def layers(t: Try) -> None:
    """A base whose configuration asks for ten million layers."""
    prepare(t)
    t.submit(jobs(NINE, STEPS))
    config = t.folder / "base" / "config.json"
    good = config.read_text()
    config.write_text(json.dumps({**json.loads(good), "num_hidden_layers": 10_000_000}))
    t.run(*RUN)
    t.ends(2)
    t.expect("config.json" in t.found.said, "the refusal does not name the file")
    config.write_text(good)
    t.cure(*RUN)


def _job(**adapter: Any) -> dict[str, Any]:
    return {"method": "mixlora" if "num_experts" in adapter else "lora", "adapter": adapter}


HUGE: Final = {"rank": 256, "num_experts": 1024, "top_k": 1024}
"""Fits 16 GiB, but a step of it takes minutes."""
KINDS: Final[dict[str, Callable[[Try], dict[str, Any]]]] = {
    "rank of a million": fields(_job(rank=1_000_000)),
    "a billion experts": fields(_job(rank=4, num_experts=1_000_000_000)),
    "1e15 steps": fields({"steps": 10**15}),
    "data is a FIFO": file_of("pipe.jsonl", lambda path, t: os.mkfifo(path)),
    "data is a device": file_of("device.jsonl", lambda path, t: os.mknod(path, 0o600 | stat.S_IFCHR, ZERO)),
    "data is a gz bomb": file_of("bomb.jsonl.gz", _bomb),
    "data file grows": file_of("grows.jsonl", _grows),
    "the tokenizer's regex gives up": file_of("regex.jsonl", _regex),
    "the template loops": file_of("loops.jsonl", _loops),
    "its rows eat memory": file_of("eats.json", _eats),
}
CASES: Final[dict[str, Callable[[Try], None]]] = {
    **{f"poisoned job: {name}": partial(poisoned, what=what) for name, what in KINDS.items()},
    "poisoned job: its step hangs": partial(
        poisoned,
        what=fields({**_job(**HUGE), "batch_size": 64, "micro_batch_size": 16}),
        run=("--max-resident", "4", "--hang-after", "5"),
    ),
    "poisoned job: checkpoint of garbage": partial(checkpoint, spoil=_garbage),
    "poisoned job: checkpoint cut in half": partial(checkpoint, spoil=_half),
    "poisoned job: checkpoint files are FIFOs": partial(checkpoint, spoil=_pipes),
    "poisoned base: ten million layers": layers,
}
