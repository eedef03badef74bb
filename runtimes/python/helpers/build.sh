#!/bin/bash
# Builds /mnt/code with the build command given.
exec executor lifecycle build "$@"
