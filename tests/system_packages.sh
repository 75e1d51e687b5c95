#!/bin/sh
# Brings what pip cannot, where it is missing: a compiler, the venv module of the given interpreter, its headers, and
# GoogleTest. Through apt-get as root or with sudo; elsewhere it says what to install.
set -eu
python=${1:-python3}

if ! command -v "$python" >/dev/null 2>&1; then
  echo "dendnorm needs Python 3.11 or newer, and there is no $python: install one, or name it with PYTHON=" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "dendnorm needs Python 3.11 or newer, and $python is $("$python" -V): name a newer one with PYTHON=" >&2
  exit 1
fi

missing=
command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || [ -n "${CXX:-}" ] || missing="$missing g++"
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  missing="$missing python3-dev"
[ -e /usr/include/gtest/gtest.h ] || [ -e /usr/local/include/gtest/gtest.h ] || missing="$missing libgtest-dev"
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null 2>&1; then
  as_root=
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  echo "Installing$missing"
  if { $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq $missing; } \
    >/dev/null 2>&1; then
    exit 0
  fi
fi
if [ "$missing" = " libgtest-dev" ]; then
  echo "GoogleTest is not installed; the build will try to download it." >&2
  exit 0
fi
echo "Please install these, or what your system calls them, and try again:$missing" >&2
exit 1
