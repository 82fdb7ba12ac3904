"""What every HTTP listener answers, at every path, to every method and caller, as ``answers.txt`` has it.

A line of the table has the path and then an answer for each method, all those with the same answer together:
the status, the end of the content type, the reason's word, and what ``Allow`` says.
"""

from __future__ import annotations

from pathlib import Path

from tests.server.answering import CONNECT, METHODS, Ask, listener_paths, open_listeners

TABLE = Path(__file__).with_name("answers.txt")


async def test_each_listener_answers_as_the_table_says(tmp_path: Path) -> None:
    lines: list[str] = []
    async with open_listeners(tmp_path) as listeners:
        assert listeners.keys() == listener_paths().keys()
        for name, paths in listener_paths().items():
            lines += ["", f"[{name}]"]
            for path in paths:
                lines.append(f"{path:36} {await _answers(listeners[name], METHODS, path)}".rstrip())
            for authority in CONNECT:
                lines.append(f"{authority:36} {await _answers(listeners[name], ('CONNECT',), authority)}")
    assert "\n".join(lines[1:]) + "\n" == TABLE.read_text()


async def _answers(ask: Ask, methods: tuple[str, ...], target: str) -> str:
    by_answer: dict[str, list[str]] = {}
    for method in methods:
        by_answer.setdefault(await ask(method, target), []).append(method)
    return "  ".join(f"{','.join(found)} {answer}" for answer, found in by_answer.items())
