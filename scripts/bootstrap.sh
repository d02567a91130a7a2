#!/usr/bin/env bash
# Makes ready what a build needs: system packages, .venv, pinned Python packages. Quick when all of it is there.
#   PYTHON=<python>       the interpreter that .venv is made from
#   CXX=<compiler>        g++ 12 or later
#   XFORMERS_APT=0        never install system packages, even as root
source "$(dirname "$0")/common.sh"

readonly LIBRARY_PACKAGES=(libhwy-dev libgtest-dev libcli11-dev nlohmann-json3-dev zlib1g-dev)

can_apt() { [[ ${XFORMERS_APT:-1} != 0 && $(id -u) == 0 ]] && command -v apt-get >/dev/null; }
apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y --no-install-recommends "$@" && return
  apt-get update && apt-get install -y --no-install-recommends "$@"
}

# Prints an interpreter >= 3.10 that can make virtual environments, else nothing.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' \
      2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

missing_libraries() {
  local package
  command -v dpkg-query >/dev/null || return 0
  for package in "${LIBRARY_PACKAGES[@]}"; do
    [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == *"ok installed" ]] || printf '%s ' "$package"
  done
}

system_packages() {
  local wanted=()
  read -ra wanted <<<"$(missing_libraries)"
  if can_apt; then
    [[ -n $(find_compiler) ]] || wanted+=(g++)
    [[ -d .venv || -n $(find_python) ]] || wanted+=(python3 python3-venv)
    command -v ccache >/dev/null || wanted+=(ccache)
    if ((${#wanted[@]})); then
      step "system packages (${wanted[*]})" apt_install "${wanted[@]}" libc6-dev
    fi
    if [[ -z $(find_compiler) ]]; then step "system packages (g++-12)" apt_install g++-12; fi
  elif ((${#wanted[@]})); then
    say "not installed: ${wanted[*]}. Their pinned sources are downloaded in the build."
    say "  To use the system's:  sudo apt-get install ${wanted[*]}"
  fi
  [[ -n $(find_compiler) ]] || fail "no C++ compiler: found ${CXX:-$(command -v g++ || echo no g++)}, expected g++ 12 or later." \
    "Fix: sudo apt-get install g++  (older systems: g++-12), or CXX=<compiler> make ..."
}

python_environment() {
  local python stamp
  if ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    [[ -n $python ]] || fail "no Python for .venv: found $("${PYTHON:-python3}" --version 2>/dev/null || echo none), expected 3.10 to 3.14 with venv." \
      "Fix: sudo apt-get install python3 python3-venv, or PYTHON=<interpreter> make ..."
    step "virtual environment of $("$python" --version)" "$python" -m venv --clear .venv
  fi
  stamp=.venv/.installed-$(cksum <requirements.txt | cut -d' ' -f1)
  if [[ ! -f $stamp ]]; then
    step "Python packages (torch takes a few minutes)" \
      .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt
    touch "$stamp"
  fi
}

system_packages
python_environment
