"""The function that the conformance tests deploy (tests/conformance). What it does is chosen by the header x-action.

A plain Open Runtimes function: nothing here is known only to this executor.
"""

import hashlib
import os
import time
import urllib.request


def fetch(url):
    with urllib.request.urlopen(url) as answer:
        return answer.status, answer.read().decode()


class Actions:
    def plaintextResponse(self, context):
        return context.res.text("Hello World 👋")

    def jsonResponse(self, context):
        return context.res.json({"json": True, "message": "Developers are awesome."})

    def customCharsetResponse(self, context):
        return context.res.text("ÅÆ", 200, {"content-type": "text/plain; charset=iso-8859-1"})

    def uppercaseCharsetResponse(self, context):
        return context.res.text("ÅÆ", 200, {"content-type": "TEXT/PLAIN"})

    def multipartResponse(self, context):
        part = 'Content-Disposition: form-data; name="partOne"\r\n\r\nWhy just have one part?'
        headers = {"content-type": "multipart/form-data; boundary=12345"}
        return context.res.text(f"--12345\r\n{part}\r\n--12345--\r\n", 200, headers)

    def redirectResponse(self, context):
        return context.res.redirect("https://github.com/")

    def emptyResponse(self, context):
        return context.res.empty()

    def noResponse(self, context):
        context.res.text("This should be ignored, as it is not returned.")

    def doubleResponse(self, context):
        context.res.text("This should be ignored.")
        return context.res.text("This should be returned.")

    def headersResponse(self, context):
        headers = context.req.headers
        return context.res.text(
            "OK",
            200,
            {
                "first-header": "first-value",
                "second-header": headers.get("x-open-runtimes-custom-in-header", "missing"),
                "cookie": headers.get("cookie", "missing"),
                "x-open-runtimes-custom-out-header": "third-value",
            },
        )

    def statusResponse(self, context):
        return context.res.text("FAIL", 404)

    def requestMethod(self, context):
        return context.res.text(context.req.method)

    def requestUrl(self, context):
        req = context.req
        return context.res.json(
            {
                "url": req.url,
                "scheme": req.scheme,
                "host": req.host,
                "port": req.port,
                "path": req.path,
                "query": req.query,
                "queryString": req.query_string,
            }
        )

    def requestHeaders(self, context):
        return context.res.json(context.req.headers)

    def requestBodyText(self, context):
        return context.res.text(context.req.body_text)

    def requestBodyJson(self, context):
        return context.res.json(context.req.body_json)

    def requestBodyBinary(self, context):
        return context.res.binary(context.req.body_binary)

    def requestBodyTextAuto(self, context):
        return context.res.text(context.req.body)

    def requestBodyJsonAuto(self, context):
        return context.res.json(context.req.body)

    def enforcedHeaders(self, context):
        names = ("x-custom", "x-custom-uppercase", "x-open-runtimes-custom")
        return context.res.json({name: context.req.headers[name] for name in names})

    def envVars(self, context):
        return context.res.json(
            {"var": os.environ.get("CUSTOM_ENV_VAR"), "emptyVar": os.environ.get("NOT_DEFINED_VAR")}
        )

    def binaryResponse1(self, context):
        return context.res.binary(bytes([0, 10, 255]))

    def binaryResponse2(self, context):
        return context.res.binary(bytearray([0, 20, 255]))

    def binaryResponse3(self, context):
        return context.res.binary(memoryview(bytes([0, 30, 255])))

    def binaryResponse4(self, context):
        return context.res.binary(b"\x00\x28\xff")

    def binaryResponse5(self, context):
        return context.res.binary(memoryview(bytes([9, 0, 50, 255]))[1:])

    def binaryResponseLarge(self, context):
        digest = hashlib.md5(context.req.body_binary).hexdigest()
        return context.res.text(digest, 200, {"x-method": context.req.method})

    def logs(self, context):
        print("Native log")
        context.log("Debug log")
        context.error("Error log")
        context.log("Log+With+Plus+Symbol")
        context.log(42)
        context.log(4.2)
        context.log(True)
        context.log({"objectKey": "objectValue"})
        context.log(["arrayValue"])
        context.log("A" * 9000)
        context.error("B" * 9000)
        return context.res.text("")

    def spreadOperatorLogs(self, context):
        context.log("engine:", "open-runtimes")
        context.error("engine:", "open-runtimes")
        return context.res.text("OK")

    def timeout(self, context):
        context.log("Timeout start.")
        time.sleep(3)
        context.log("Timeout end.")
        return context.res.text("Successful response.")

    def errorTest(self, context):
        context.log("Before error...")
        raise Exception("Error!")

    def setCookie(self, context):
        cookies = ["cookie=value; path=/", "cookie2=value2; path=/"]
        return context.res.text("OK", 200, {"set-cookie": cookies, "some-header": "some-value"})

    def setCookie2(self, context):
        headers = {"some-header": "some-value"}
        headers["Set-Cookie"] = ["cookie=value; path=/"]
        headers["Set-Cookie"].append("cookie2=value2; path=/")
        return context.res.text("OK", 200, headers)

    def deprecatedMethods(self, context):
        return context.res.send(context.req.body_raw)

    def deprecatedMethodsUntypedBody(self, context):
        return context.res.send(50)

    def deprecatedMethodsBytesBody(self, context):
        return context.res.send(bytes.fromhex("89504e470d0a1a0a"), 200, {"content-type": "image/png"})

    def library(self, context):
        status, text = fetch(context.req.headers["x-url"])
        return context.res.json({"status": status, "text": text})

    # Beyond the usual actions: what only a runtime that can interrupt, and one that serves many at once, does well.

    def loop(self, context):
        context.log("Loop start.")
        while True:
            pass

    def held(self, context):
        """Says when it has begun, and goes on when it is answered."""
        name = context.req.query["name"]
        context.log("log before", name)
        print("native before", name)
        fetch(context.req.headers["x-url"])
        print("native after", name)
        context.error("error after", name)
        return context.res.text(name)


actions = Actions()


def main(context):
    action = getattr(actions, context.req.headers.get("x-action", ""), None)
    if action is None:
        raise Exception("Unknown action")
    return action(context)
