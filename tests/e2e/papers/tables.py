"""The steps that the walk adds to the documents, and the blocks that it skips. These tables are complete."""

from __future__ import annotations

import re

NOT_WALKED = {
    ("README.md", "./dev demo"): "tests/e2e/firsthour",
    ("README.md", "docker build"): "tests/e2e/containers",
    ("README.md", "docker run -d --network host"): "tests/e2e/containers",
    ("README.md", "kind: EgressSelectorConfiguration"): "tests/e2e/network/test_kube.py",
    ("docs/install.md", "proxy = "): "tests/e2e/network/test_route.py",
    ("docs/install.md", "pip download"): "tests/e2e/papers/world.py",
    ("docs/install.md", "--no-index"): "tests/e2e/papers/world.py",
    ("docs/install.md", "securityContext:"): "tests/certs/test_files.py",
}
"""Blocks by paper and a part of their text, with the suite that covers them."""

PAPERS_ELSEWHERE = {
    "docs/commands.md": "tests/core/cli/test_manual.py",
    "docker/README.md": "tests/e2e/containers",
    "docs/access.md": "tests/server/admin/test_granting.py",
    "docs/web.md": "tests/server/entrances/web",
}
"""Documents that another suite covers as a whole."""

SECTIONS = {
    "docs/operate.md": (
        *("Dashboards", "SSH", "Any TCP", "curl and other CONNECT clients"),
        *("Nodes, sessions and streams", "Completion and manual pages"),
    ),
}
"""Documents of which only these sections are walked."""

TOKEN = re.compile(r"\bqanat1_[\w.*-]+")
"""TOKEN in a block stands for the token that an earlier block printed last."""

ANSWERS = {"service uninstall --purge": "y\n", "node revoke edge1\n": "y\n"}
"""Blocks that ask are typed at a terminal, with this answer."""

RUNS_ON = re.compile(r"ssh -(N -)?L |qanat forward |qanat events \S+ -f|qanat nodes --watch")
"""Commands that end with Ctrl-C. Each runs in a terminal of its own until the document is at its end."""

CARRIED = {
    "ln -s /opt/qanat/bin/qanat-agent": ("in a checkout", "dist/qanat-*.whl"),
    "install -D -m 0600 edge1.pem": ("on the server", "edge1.pem"),
}
"""Files that a person carries to the machine of a block before it: from which machine, which file."""

UPGRADE = "pip install --upgrade"
"""Before a block with this text the newer wheel replaces the old one, as the document describes."""

RESTARTED = {
    "/etc/qanat/server.toml": "qanat-server service install",
    "/etc/qanat/agent.toml": "qanat-agent service install",
}
"""The command that makes a program read a changed file; the document names it beside each file."""

ALLOWED = ("localhost:22", "localhost:2222", "localhost:1883", "localhost:5432", "localhost:8080")
"""The targets that the node must allow for the examples of docs/operate.md."""
