# SPDX-License-Identifier: MIT
"""The page: one text with its style and script in it, and a policy that allows nothing else."""

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Self

_PLACES = {"style": "/*page.css*/", "script": "/*page.js*/"}


@dataclass(frozen=True, slots=True)
class Page:
    """``text`` is HTML; ``policy`` is for its Content-Security-Policy header."""

    text: str
    policy: str

    @classmethod
    def load(cls) -> Self:
        """Put the page together. What is in it is fixed, so it is known by its hashes."""
        folder = files("swiftnbd.server") / "page"
        text = (folder / "page.html").read_text("utf-8")
        policy = ["default-src 'none'", "connect-src 'self'", "img-src data:"]
        for kind, place in _PLACES.items():
            part = (folder / place.strip("/*")).read_text("utf-8")
            assert text.count(place) == 1
            text = text.replace(place, part)
            digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
            policy.append(f"{kind}-src 'sha256-{digest}'")
        policy += ["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
        return cls(text, "; ".join(policy))
