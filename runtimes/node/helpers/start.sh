#!/bin/bash
# Puts the code of /mnt/code in place and runs the start command given.
exec executor lifecycle start "$@"
