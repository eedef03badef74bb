import struct
import time

info = {"name": "visits", "version": "1.0.0", "doc": "counts visits per user, the first segment of the path"}

PACKED = struct.Struct(">Qd")  # number of visits, time of the last one


def read(value):
    """State is a JSON value or bytes, as it was set last: → (count, last)."""
    if value is None:
        return 0, None
    if isinstance(value, bytes):
        return PACKED.unpack(value)
    return value["count"], value["last"]


async def main(context):
    req, res, state = context.req, context.res, context.state
    if req.method == "DELETE":
        state.delete()
        return res.empty()
    count, last = read(state.get())
    now = time.time()
    if req.path.endswith("/packed"):
        state.set(PACKED.pack(count + 1, now))
    else:
        state.set({"count": count + 1, "last": now})
    away = None if last is None else round(now - last, 3)
    return res.json({"user": state.key, "visits": count + 1, "seconds_since_last": away})
