"""The page as it is sent, and the policy under which browsers run it: its own script and style, known by their hashes.

So whatever else gets into the page, by whatever fault, is not run; and it loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import Final

PAGE: Final = resources.files("raftsvc.operator").joinpath("page.html").read_text(encoding="utf-8")


def _hash_of(tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_hash_of('script')}",
        f"style-src {_hash_of('style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
