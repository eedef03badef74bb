#!/bin/bash
# The usual start command: serves the function. EXECUTOR_RUNTIME, set by the image, says in which language.
exec executor run /usr/local/server/src/function --port 3000 --host 0.0.0.0
