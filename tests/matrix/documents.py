"""The documents of the matrix: each says which it is, and whether it is whole."""

import json

PAD = 2000


def fields(n):
    """What makes the nth document; all are of one size, so that only content and mtime tell them apart."""
    return {"_n": n, "pad": chr(ord("a") + n) * PAD}


def document(n):
    return json.dumps({"py/object": "wepppy.nodb.core.Wepp", "py/state": fields(n)})


def number(text):
    """Which document it is. ValueError: none, or not all of it."""
    state = json.loads(text)["py/state"]
    n = state["_n"]
    if state["pad"] != fields(n)["pad"]:
        raise ValueError(f"document {n} is mixed with another")
    return n


def plain_state(text):
    """The state without the fields that a cached text has of its own."""
    state = json.loads(text)["py/state"]
    return {key: value for key, value in state.items() if key not in ("_nodb_mtime", "_nodb_size")}
