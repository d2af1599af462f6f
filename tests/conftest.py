"""Fixtures of real servers, for every test that wants them."""

from __future__ import annotations

pytest_plugins = ["support.reaper", "support.postgres", "support.nats", "support.live_crew"]
