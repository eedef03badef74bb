import os
from urllib.parse import unquote_plus

info = {"name": "hello-python", "version": "1.0.0", "doc": "greets whom ?name= says"}

greeting = os.environ.get("GREETING", "Hello")


def main(context):
    name = context.req.query.get("name")
    if name is None:
        return context.res.text(f"{greeting}, world!\n")
    return context.res.text(f"{greeting}, {unquote_plus(name)}!\n")
