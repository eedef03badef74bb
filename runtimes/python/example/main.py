import os

info = {"name": "example", "version": "0.1.0", "doc": "greets, and says what it was asked"}


# Runs once per call. What it returns is sent; what it raises is a 500, with the stack in the log.
def main(context):
    req, res = context.req, context.res
    context.log("called", req.method, req.path)
    if req.method == "GET":
        return res.text(f"{os.environ.get('GREETING', 'Hello')}, {req.query.get('name', 'world')}!\n")
    return res.json({"method": req.method, "path": req.path, "query": req.query, "body": req.body})
