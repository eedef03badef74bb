info = {"name": "likes", "version": "1.0.0", "doc": "likes and who gave them, for each page: /<page>"}


def main(context):
    """One map per page: a counter of all likes, a set of who likes it now.

    Calls do not wait for each other: what they did is merged, here and on every executor with the same store.
    """
    req, res, state = context.req, context.res, context.state
    views, fans = state.entry("views", "g-counter"), state.entry("fans", "or-set")
    name = req.headers.get("x-user", "")
    if req.method in ("POST", "DELETE"):
        if not 0 < len(name) <= 64:
            return res.json({"error": "say who you are in the header x-user"}, 422)
        if req.method == "POST":
            fans.add(name)
        else:
            fans.remove(name)
    elif req.method in ("GET", "HEAD"):
        views.increment()
    else:
        return res.json({"error": "use GET, POST or DELETE"}, 405, {"allow": "GET, HEAD, POST, DELETE"})
    return res.json({"page": state.key, "likes": len(fans.values), "fans": sorted(fans.values), "views": views.value})
