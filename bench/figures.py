"""Figures of the bench, each with its meaning, floor, goal and better direction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure. ``what`` is its description with the unit."""

    key: str
    what: str
    floor: float
    goal: float
    higher_is_better: bool

    def reaches(self, value: float, bar: float) -> bool:
        """Whether ``value`` is at least as good as ``bar``."""
        return value >= bar if self.higher_is_better else value <= bar


_UP, _DOWN = True, False
FIGURES = {
    figure.key: figure
    for figure in (
        Figure("download_vs_grpc", "one download, MiB/s against bare grpc.aio", 0.85, 1.2, _UP),
        Figure("upload_vs_grpc", "one upload, MiB/s against bare grpc.aio", 0.85, 1.2, _UP),
        Figure("download8_vs_grpc", "8 downloads together, MiB/s against bare grpc.aio", 0.85, 1.2, _UP),
        Figure("echo_p50_vs_grpc", "64-byte echo, median time against bare grpc.aio", 1.4, 1.0, _DOWN),
        Figure("echo8_vs_grpc", "echoes/s on 8 connections against bare grpc.aio", 0.7, 1.0, _UP),
        Figure("echo64_vs_grpc", "echoes/s on 64 connections against bare grpc.aio", 1.0, 2.0, _UP),
        Figure("connect_p50_vs_grpc", "new connection and echo, median against grpc.aio", 1.0, 0.5, _DOWN),
        Figure("connects_vs_grpc", "connections/s, 32 at once, against bare grpc.aio", 1.0, 3.0, _UP),
        Figure("download_vs_unbounded", "one download, against the flight limit switched off", 0.97, 1, _UP),
        Figure("download8_vs_unbounded", "8 downloads together, the same", 0.97, 1, _UP),
        Figure("echo_p50_vs_unbounded", "64-byte echo, median time, the same", 1.03, 1, _DOWN),
        Figure("stalled_kept", "share of a download's rate kept beside 100 stalled ones", 0.95, 0.99, _UP),
        Figure("stalled_echo_p99", "echo p99 beside 100 stalled streams / without them", 1.2, 1.05, _DOWN),
        Figure(
            "stalled_over_credit", "memory of 100 stalled streams / their credit, worse side", 2, 1, _DOWN
        ),
        Figure("agent_rss_mib", "MiB of an idle agent", 60, 48, _DOWN),
        Figure("stream_kib", "KiB of an idle stream, server and agent together", 48, 16, _DOWN),
        Figure(
            "rss_left_mib_server", "MiB of the server a minute after work, beyond the start", 10, 5, _DOWN
        ),
        Figure("rss_left_mib_agent", "MiB of the agent a minute after work, beyond the start", 10, 5, _DOWN),
        Figure("agents_kib", "KiB of the server for each attached agent", 150, 80, _DOWN),
        Figure("agents_cpu_percent", "% of a core for all attached agents when idle", 5, 1, _DOWN),
        Figure(
            "fleet_resume_seconds", "until the last agent of a fleet without link is back, s", 10, 4, _DOWN
        ),
        Figure("keystroke_extra_ms", "echo p99 less round trip, worst load, 20 Mbit/s", 80, 30, _DOWN),
        Figure("keystroke_extra_ms_thin", "the same at 2 Mbit/s and 300 ms", 400, 150, _DOWN),
        Figure("bulk_share", "the least of 20 Mbit/s that bulk reaches meanwhile", 0.8, 0.9, _UP),
        Figure("resume_seconds", "streams go on after a black hole of 10 s, the slowest", 2, 1, _DOWN),
        Figure(
            "moves_in_10_starts", "moves in ten first downloads over a path that became slow", 1, 0, _DOWN
        ),
        Figure("idle_kb_per_hour", "KB an hour on the link of an idle agent", 70, 65, _DOWN),
        Figure("idle_kb_per_hour_metered", "the same with the profile metered", 6, 5, _DOWN),
        Figure("cpu_us_echo1", "CPU of one echo, one at a time, us", 600, 450, _DOWN),
        Figure("cpu_us_echo64", "CPU of one echo, 64 at once, us", 70, 60, _DOWN),
        Figure("cpu_us_connection_tcp", "CPU of a new connection by `tcp`, us", 520, 400, _DOWN),
        Figure("cpu_us_connection_unix", "the same by CONNECT on the unix socket, us", 700, 500, _DOWN),
        Figure("cpu_us_get1", "CPU of a small GET by `web`, one at a time, us", 1500, 800, _DOWN),
        Figure("cpu_us_get32", "the same on 32 keep-alive connections, us", 1500, 800, _DOWN),
        Figure("first_byte_rtts", "first answer byte on a 50 ms line, in round trips", 1.2, 1.05, _DOWN),
    )
}
"""Figures by their keys in `--json`. A release must reach the floors; the goals are not required."""

FAMILIES = {
    "idle": ("agent_rss_mib", "stream_kib"),
    "after_work": ("rss_left_mib_server", "rss_left_mib_agent"),
    "bulk": ("download_vs_grpc", "upload_vs_grpc", "download8_vs_grpc"),
    "echo": ("echo_p50_vs_grpc", "echo8_vs_grpc", "echo64_vs_grpc"),
    "connections": ("connect_p50_vs_grpc", "connects_vs_grpc"),
    "cpu": (
        *("cpu_us_echo1", "cpu_us_echo64", "cpu_us_connection_tcp", "cpu_us_connection_unix"),
        *("cpu_us_get1", "cpu_us_get32"),
    ),
    "flight": ("download_vs_unbounded", "download8_vs_unbounded", "echo_p50_vs_unbounded"),
    "stalled": ("stalled_kept", "stalled_echo_p99", "stalled_over_credit"),
    "first_byte": ("first_byte_rtts",),
    "fleet": ("agents_kib", "agents_cpu_percent"),
    "resume": ("fleet_resume_seconds",),
    "connect_mtls": (),
    "idle_link": ("idle_kb_per_hour", "idle_kb_per_hour_metered"),
    "keystrokes": ("keystroke_extra_ms", "keystroke_extra_ms_thin", "bulk_share"),
    "black_hole": ("resume_seconds",),
    "moves": ("moves_in_10_starts",),
    "paths": (),
}
"""Rows that are measured together, in the order of a whole run: memory first, on fresh processes."""

BESIDE_OTHERS = {"idle_link"}
"""Families that run beside the following ones, because they take minutes and use almost no processor time."""
