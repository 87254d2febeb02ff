"""The filter scram_verifier: what PostgreSQL keeps of a password."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: scram_verifier
short_description: what PostgreSQL keeps of a password
version_added: "0.1.0"
author: pgkeep maintainers
description:
  - Makes what PostgreSQL keeps of a password for SCRAM-SHA-256, so that the password itself reaches no server and no log.
  - Returns what the server has if it belongs to the password, so that nothing changes.
positional: now
options:
  _input:
    description: The password, of printable ASCII characters.
    type: str
    required: true
  now:
    description: What the server has.
    type: str
    default: ""
"""

EXAMPLES = """
- name: Make what is kept
  ansible.builtin.set_fact:
    made: "{{ password | pgkeep.pgkeep.scram_verifier(now) }}"
"""

RETURN = """
_value:
  description: The verifier, as pg_authid has it.
  type: str
"""

ITERATIONS = 4096


def _make(password: str, salt: bytes, iterations: int) -> str:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    client = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode("ascii") for part in (salt, client, server)]
    return f"SCRAM-SHA-256${iterations}:{text[0]}${text[1]}:{text[2]}"


def scram_verifier(password: str, now: str = "") -> str:
    """Make a verifier, or keep the one that belongs to the password."""
    # Others would have to be normalised first (SASLprep, RFC 4013).
    if not password or not password.isascii() or not password.isprintable():
        raise AnsibleFilterError("a password for PostgreSQL is made of printable ASCII characters here")
    try:
        method, parameters, _keys = now.split("$")
        iterations, salt = parameters.split(":")
        if method == "SCRAM-SHA-256":
            made = _make(password, base64.b64decode(salt), int(iterations))
            if hmac.compare_digest(made, now):
                return now
    except ValueError:
        # None, or one of another kind.
        pass
    return _make(password, os.urandom(16), ITERATIONS)


class FilterModule:
    """What Ansible asks for."""

    def filters(self) -> dict:
        """Name the filters."""
        return {"scram_verifier": scram_verifier}
