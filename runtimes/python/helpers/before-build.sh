#!/bin/bash
# Nothing to do: the build points pip to the cache, and only the build command installs.
