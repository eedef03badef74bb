from markdown import render

info = {"name": "markdown", "version": "1.0.0", "doc": "renders the Markdown of the request body as HTML"}

LIMIT = 1_048_576


def main(context):
    req, res = context.req, context.res
    if req.method not in ("POST", "PUT"):
        return res.text("send Markdown as the body of a POST\n", 405, {"allow": "POST, PUT"})
    if len(req.body_binary) > LIMIT:
        return res.text(f"the text is larger than {LIMIT} bytes\n", 413)
    page = render(req.body_text)
    context.log(len(req.body_binary), "bytes in,", len(page), "characters out")
    return res.text(page, 200, {"content-type": "text/html"})
