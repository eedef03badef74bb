#!/usr/bin/env bash
# Makes the image `debian:trixie-slim` on this machine, for places where no image registry answers.
#
# It does nothing if the image is there, tries a short `docker pull` if it is not, and otherwise builds the
# same thing from Debian's packages with debootstrap. The packages come from the mirror that this host's own
# apt uses (plain http only, as the image has no certificates), or from the one named with --mirror.
set -euo pipefail

readonly SUITE=trixie
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

image=debian:trixie-slim
force=no
pull=yes
pull_timeout=60
mirror=
work=

usage() {
  cat <<'TEXT'
usage: docker/base-image.sh [--force] [--no-pull] [--pull-timeout SECONDS] [--mirror URL] [--tag IMAGE]

  --force                 make the image again even if it is there
  --no-pull               do not ask an image registry first
  --pull-timeout SECONDS  how long the registry may take (60)
  --mirror URL            Debian mirror to use, http://HOST/debian (the one of this host's apt)
  --tag IMAGE             name of the image (debian:trixie-slim)
TEXT
}

say() { printf 'base-image: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

parse_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --force) force=yes ;;
      --no-pull) pull=no ;;
      --pull-timeout | --mirror | --tag)
        [ $# -ge 2 ] || die "$1 needs a value"
        case "$1" in
          --pull-timeout) pull_timeout=$2 ;;
          --mirror) mirror=${2%/} ;;
          --tag) image=$2 ;;
        esac
        shift
        ;;
      -h | --help)
        usage
        exit 0
        ;;
      *)
        usage >&2
        die "unknown argument: $1"
        ;;
    esac
    shift
  done
}

require_docker() {
  command -v docker >/dev/null || die "docker is not installed; on Debian: apt-get install docker.io"
  docker version --format '{{.Server.Version}}' >/dev/null 2>&1 ||
    die "the Docker daemon does not answer: is it running, and may $(id -un) use it? Try: docker info"
}

# All that is missing is said at once.
require_debootstrap() {
  local packages=() problems=()
  [ "$(id -u)" -eq 0 ] || problems+=("debootstrap needs root: run it with sudo")
  command -v debootstrap >/dev/null || packages+=(debootstrap)
  [ -r "$KEYRING" ] || packages+=(debian-archive-keyring)
  [ "${#packages[@]}" -eq 0 ] ||
    problems+=("not installed: ${packages[*]}; do: apt-get update && apt-get install ${packages[*]}")
  [ "${#problems[@]}" -gt 0 ] || return 0
  local problem
  for problem in "${problems[@]}"; do say "$problem"; done
  exit 1
}

# The first plain http archive among this host's apt sources whose path ends in $1; nothing if there is none.
# An address that carries a password is never taken: it would end up in the image.
host_mirror() {
  command -v apt-get >/dev/null || return 0
  # shellcheck disable=SC2016 # apt's own placeholder
  apt-get indextargets --format '$(REPO_URI)' 2>/dev/null |
    awk -v end="$1" '{ sub(/\/$/, "") } /^http:\/\/[^@]*$/ && $0 ~ end "$" { if (!seen++) print }'
}

# apt's own proxy also serves debootstrap, which does not read apt's configuration.
use_host_proxy() {
  local proxy
  command -v apt-config >/dev/null || return 0
  proxy=$(apt-config dump 2>/dev/null | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p' | head -n 1)
  case "${http_proxy:-}:$proxy" in
    :http*) export http_proxy=$proxy ;;
  esac
}

write_sources() {
  local root=$1 main=$2 security=$3
  rm -f "$root/etc/apt/sources.list"
  cat >"$root/etc/apt/sources.list.d/debian.sources" <<TEXT
Types: deb
URIs: $main
Suites: $SUITE $SUITE-updates
Components: main
Signed-By: $KEYRING

Types: deb
URIs: $security
Suites: $SUITE-security
Components: main
Signed-By: $KEYRING
TEXT
}

# The same settings that the official slim image carries: no documentation, nothing kept by apt, and no
# service started by a package.
write_settings() {
  local root=$1
  cat >"$root/etc/dpkg/dpkg.cfg.d/docker" <<'TEXT'
force-unsafe-io
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
TEXT
  cat >"$root/etc/apt/apt.conf.d/docker" <<'TEXT'
Acquire::GzipIndexes "true";
Acquire::Languages "none";
Apt::AutoRemove::SuggestsImportant "false";
APT::Update::Post-Invoke { "rm -f /var/cache/apt/*.bin || true"; };
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
TEXT
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod 0755 "$root/usr/sbin/policy-rc.d"
}

slim() {
  local root=$1
  find "$root/usr/share/doc" -mindepth 1 ! -type d ! -name copyright -delete
  find "$root/usr/share/doc" -mindepth 1 -type d -empty -delete
  rm -rf "$root"/usr/share/{info,lintian,locale,man}/*
  find "$root"/var/lib/apt/lists "$root"/var/cache "$root"/var/log -type f -delete
  rm -f "$root"/var/lib/dpkg/*-old "$root"/etc/{hostname,resolv.conf,machine-id}
  : >"$root/etc/machine-id"
}

build() {
  require_debootstrap
  use_host_proxy
  local main security root log
  main=${mirror:-$(host_mirror /debian)}
  [ -n "$main" ] || die "apt on this host names no Debian mirror over plain http; name one: --mirror http://HOST/debian"
  security=$(host_mirror /debian-security)
  security=${security:-${main%/debian}/debian-security}
  say "building $image with debootstrap, about a minute"

  work=$(mktemp -d "${TMPDIR:-/tmp}/base-image.XXXXXX")
  trap 'rm -rf --one-file-system "$work"' EXIT
  trap 'exit 130' INT TERM
  root=$work/root
  log=$work/log
  run_logged "$log" debootstrap --variant=minbase --keyring="$KEYRING" "$SUITE" "$root" "$main"
  write_sources "$root" "$main" "$security"
  write_settings "$root"
  # The mirror's resolver is the host's; slim() takes the file out again.
  cat /etc/resolv.conf >"$root/etc/resolv.conf"
  run_logged "$log" in_root "$root" apt-get update
  run_logged "$log" in_root "$root" apt-get dist-upgrade --yes
  slim "$root"
  tar --numeric-owner --one-file-system -C "$root" -c . |
    docker import --change 'CMD ["bash"]' --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
      --message 'debootstrap by docker/base-image.sh' - "$image" >/dev/null
}

in_root() {
  local root=$1
  shift
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    ${http_proxy:+http_proxy="$http_proxy"} chroot "$root" "$@"
}

run_logged() {
  local log=$1
  shift
  "$@" >"$log" 2>&1 </dev/null && return 0
  tail -n 20 "$log" >&2
  die "failed: $*"
}

describe() {
  docker image inspect --format '{{.Id}} {{.Size}}' "$image" |
    awk '{ printf "%s, %.0f MB", substr($1, 8, 12), $2 / 1e6 }'
}

main() {
  parse_arguments "$@"
  require_docker
  if [ "$force" = no ] && docker image inspect "$image" >/dev/null 2>&1; then
    say "$image is here ($(describe)); --force makes it again"
    return 0
  fi
  if [ "$pull" = yes ]; then
    say "asking the image registry for $image"
    local answer
    if answer=$(timeout "$pull_timeout" docker pull --quiet "$image" 2>&1); then
      say "pulled $image ($(describe))"
      return 0
    fi
    say "no image from a registry: $(tail -n 1 <<<"${answer:-no answer within ${pull_timeout}s}")"
  fi
  build
  say "made $image ($(describe)) in ${SECONDS}s"
}

main "$@"
