#!/bin/bash
# Nothing to do: the build points npm, yarn and pnpm to the cache, and only the build command installs.
