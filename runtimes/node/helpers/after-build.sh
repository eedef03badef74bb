#!/bin/bash
# Nothing to do after the build command: what it installed is packed as it is.
