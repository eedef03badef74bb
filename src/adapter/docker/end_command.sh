#!/bin/sh
# Ends one command and all that it started, as seen from inside its container: `sh -c <this> sh <mark>`.
# Only what is built into every shell is used, for an image may have nothing else.
#
# Its processes are those whose environment has the mark, those in a session of such a one, and the children of any.
# They are stopped first, until a look round finds no new one, so that none gets away by forking; then killed. Ends
# with 0 when a look round finds none. The bound on rounds is some ten seconds, for what the kernel is slow to take away.

# Words are to be split here: numbers of processes, and fields of /proc.
# shellcheck disable=SC2086
mark=$1
known=' ' sessions=' ' clean=' ' rounds=0

marked() {
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in *"EXECUTOR_COMMAND=$mark"*) return 0 ;; esac
  done <"/proc/$1/environ"
  return 1
}

# Whether process $1 with parent $2 in session $3 belongs to it.
ours() {
  case $known in *" $1 "* | *" $2 "*) return 0 ;; esac
  case $sessions in *" $3 "*) return 0 ;; esac
  case $clean in *" $1 "*) return 1 ;; esac
  if marked "$1"; then return 0; fi
  clean="$clean$1 "
  return 1
}

while [ $rounds -lt 20000 ]; do
  rounds=$((rounds + 1)) fresh='' alive=''
  for folder in /proc/[0-9]*; do
    process=${folder#/proc/}
    if [ "$process" = 1 ] || [ "$process" = $$ ]; then continue; fi
    if ! IFS= read -r stat <"$folder/stat"; then continue; fi
    # The name before the last `)` may hold anything. Then: state, parent, group, session.
    set -f
    set -- ${stat##*) }
    set +f
    case $1 in '' | Z | X) continue ;; esac
    if ! ours "$process" "$2" "$4"; then continue; fi
    alive="$alive $process"
    case $known in *" $process "*) ;; *) known="$known$process " fresh="$fresh $process" ;; esac
    # The one of process 1, or one from outside, would be shared with others.
    case $4 in 0 | 1) ;; *) sessions="$sessions$4 " ;; esac
  done
  if [ -n "$fresh" ]; then
    kill -s STOP $fresh
  elif [ -n "$alive" ]; then
    kill -s KILL $alive
  else
    exit 0
  fi
done
exit 1
