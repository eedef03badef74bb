#!/bin/bash
# The usual start command: serves the site. EXECUTOR_RUNTIME, set by the image, says that it is one.
exec executor run /usr/local/server/src/function --port 3000 --host 0.0.0.0
