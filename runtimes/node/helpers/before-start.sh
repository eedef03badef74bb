#!/bin/bash
# Nothing to do before the server starts.
