#!/bin/sh
# Installs edgemesh on a Linux host with glibc: binary, systemd unit, environment file (0600), state folder.
#
#   install.sh server --from dist/edgemesh [server flags…]
#   install.sh agent  --from dist/edgemesh --node-name edge-1 --server wss://HOST --ca-pin sha256:… --token-file FILE
#   install.sh uninstall [agent|server] [--purge]
#
# Options here: --from FILE (the executable), --no-start, --no-enable, --dry-run, --purge (with uninstall: identity and state too).
# All other flags are given to the role; they become EDGEMESH_* lines of /etc/edgemesh/<role>.env.
# INSTALL_EDGEMESH_BIN_DIR, INSTALL_EDGEMESH_SYSTEMD_DIR, INSTALL_EDGEMESH_ETC_DIR and INSTALL_EDGEMESH_STATE_DIR move the folders.
set -eu

bin_dir=${INSTALL_EDGEMESH_BIN_DIR:-/usr/local/bin}
unit_dir=${INSTALL_EDGEMESH_SYSTEMD_DIR:-/etc/systemd/system}
etc_dir=${INSTALL_EDGEMESH_ETC_DIR:-/etc/edgemesh}
state_dir=${INSTALL_EDGEMESH_STATE_DIR:-/var/lib/edgemesh}
bin=$bin_dir/edgemesh

info() { echo "[INFO]  $*"; }
warn() { echo "[WARN]  $*" >&2; }
die() {
  echo "[ERROR] $1; try: $2" >&2
  exit 1
}
usage() {
  sed -n '2,11s/^# \{0,1\}//p' "$0"
  exit "${1:-2}"
}
# Runs a command, or only shows it with --dry-run.
act() { if [ "$dry" = 1 ]; then echo "would run: $*"; else "$@"; fi; }

check_host() {
  [ "$dry" = 1 ] || [ "$(id -u)" = 0 ] || die "Installing needs root" "sudo sh $0 $role …"
  [ "$(uname -s)" = Linux ] || die "edgemesh runs on Linux, this is $(uname -s)" "a Linux host"
  case $(uname -m) in
    x86_64 | amd64 | aarch64 | arm64) ;;
    *) die "edgemesh has no build for $(uname -m); it runs on x86_64 and aarch64" "another host" ;;
  esac
  has_glibc ||
    die "This system has no glibc (Alpine and other musl systems are not supported)" "a Debian, Ubuntu, RHEL, Fedora or SUSE host"
}

has_glibc() {
  # A musl system may have a loader of this name that only stands in for glibc's.
  case $(ldd --version 2>&1) in *musl*) return 1 ;; esac
  for loader in /lib*/ld-linux-*.so.* /lib/*/ld-linux-*.so.*; do
    if [ -e "$loader" ]; then return 0; fi
  done
  return 1
}

have_systemd() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; }

# Environment name of a flag or of a path of --set: --node-name → EDGEMESH_NODE_NAME, dns.extraZones → EDGEMESH_DNS_EXTRA_ZONES.
env_name() { printf 'EDGEMESH_%s' "$(printf '%s' "${1#--}" | sed 's/\([a-z0-9]\)\([A-Z]\)/\1_\2/g' | tr 'a-z.-' 'A-Z__')"; }

# Remembers a setting for the environment file. A flag that is given again, like --server, makes a list.
setting() { # name, value
  case $2 in *[!-A-Za-z0-9_./:,@%+=\[\]]*)
    # systemd and the shell read these alike in single quotes, and nothing else.
    case $2 in *"'"* | *"
"*) die "The value of $1 holds a quote or a line break: $2" "a configuration file, $etc_dir/$role.yaml" ;; esac
    set -- "$1" "'$2'"
    ;;
  esac
  before=$(printf '%s\n' "$settings" | sed -n "s/^$1=//p")
  if [ -n "$before" ]; then
    settings=$(printf '%s\n' "$settings" | sed "/^$1=/d")
    set -- "$1" "$before,$2"
  fi
  settings="$settings${settings:+
}$1=$2"
}

# --set path=value, as the daemons have it.
set_path() {
  case $1 in ?*=*) setting "$(env_name "${1%%=*}")" "${1#*=}" ;; *) die "--set $1 has no value" "--set path=value" ;; esac
}

# Whatever may be wrong with what was given is found before anything is changed.
check_executable() {
  [ -n "$from" ] || die "No executable given" "--from dist/edgemesh (make it with ./scripts/deno task build)"
  [ -f "$from" ] || die "There is no file $from" "--from FILE with a built executable"
  # A dry run does not even unpack it.
  [ "$dry" = 0 ] || return 0
  version=$("$from" version 2>/dev/null) || die "$from does not run on this host" "the build for $(uname -m) with glibc"
  for flag in $flags; do
    # The daemon ignores variables it does not know, as they may be the other role's: a slip must be found here.
    "$from" "$role" --help | grep -q -e "^ *\(-., \)\{0,1\}$flag " ||
      die "edgemesh $role has no flag $flag" "edgemesh $role --help"
  done
}

install_role() {
  if [ -f "$bin" ] && cmp -s "$from" "$bin"; then
    info "$bin is already this build"
    changed=0
  else
    changed=1
    act mkdir -p "$bin_dir"
    if [ "$dry" = 1 ]; then
      echo "would install $from as $bin"
    else
      # A copy beside the old one, then one rename: a running agent keeps its file, a failed copy changes nothing.
      tmp=$(mktemp "$bin_dir/.edgemesh.XXXXXX")
      trap 'rm -f "$tmp"' EXIT INT TERM
      cat "$from" >"$tmp"
      chmod 755 "$tmp"
      [ ! -f "$bin" ] || cp -p "$bin" "$bin.previous"
      mv "$tmp" "$bin"
      trap - EXIT INT TERM
    fi
    [ "$dry" = 1 ] || info "installed $bin ($version)"
  fi

  act mkdir -p "$etc_dir" "$state_dir/$role"
  act chmod 700 "$state_dir" "$state_dir/$role"
  write_env
  write_unit
  start_unit
}

write_env() {
  env_file=$etc_dir/$role.env
  if [ "$dry" = 1 ]; then
    echo "would write $env_file"
    return
  fi
  tmp=$(mktemp "$etc_dir/.env.XXXXXX")
  chmod 600 "$tmp"
  # Settings of an earlier install stay unless they are given anew.
  names=$(printf '%s\n' "$settings" | sed -n 's/^\([A-Z0-9_]*\)=.*/\1/p')
  if [ -f "$env_file" ]; then
    while IFS= read -r line; do
      key=${line%%=*}
      printf '%s\n' "$names" | grep -qx "$key" || printf '%s\n' "$line"
    done <"$env_file" >>"$tmp"
  fi
  [ -z "$settings" ] || printf '%s\n' "$settings" >>"$tmp"
  if [ -f "$env_file" ] && cmp -s "$tmp" "$env_file"; then rm -f "$tmp"; else
    mv "$tmp" "$env_file"
    changed=1
  fi
}

write_unit() {
  unit=$unit_dir/edgemesh-$role.service
  if [ "$role" = agent ]; then
    caps="CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_RAW"
    families="AF_INET AF_INET6 AF_UNIX AF_NETLINK"
  else
    caps="CAP_NET_BIND_SERVICE"
    families="AF_INET AF_INET6 AF_UNIX"
  fi
  text="[Unit]
Description=edgemesh $role
Documentation=file://$etc_dir
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=-$etc_dir/$role.env
ExecStart=$bin $role
ExecReload=/bin/kill -HUP \$MAINPID
Restart=always
RestartSec=2
# Wrong settings do not become right by trying again.
RestartPreventExitStatus=2
# Without a server and without a snapshot an agent is up but not ready: waiting is right, restarting is not.
TimeoutStartSec=infinity
TimeoutStopSec=35
LimitNOFILE=65536
RuntimeDirectory=edgemesh
RuntimeDirectoryPreserve=yes
StateDirectory=edgemesh
StateDirectoryMode=0700
UMask=0077
CapabilityBoundingSet=$caps
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=$families
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
# No MemoryDenyWriteExecute: the JavaScript engine compiles at run time.

[Install]
WantedBy=multi-user.target"
  if [ "$dry" = 1 ]; then
    echo "would write $unit"
    return
  fi
  mkdir -p "$unit_dir"
  if ! printf '%s\n' "$text" | cmp -s - "$unit"; then
    printf '%s\n' "$text" >"$unit"
    chmod 644 "$unit"
    changed=1
  fi
}

start_unit() {
  if ! have_systemd; then
    info "systemd does not run here; start it with:"
    echo "    set -a; . $etc_dir/$role.env; set +a; exec $bin $role"
    return
  fi
  act systemctl daemon-reload
  [ "$enable" = 0 ] || act systemctl enable "edgemesh-$role"
  [ "$start" = 1 ] || return 0
  if [ "$changed" = 1 ]; then act systemctl restart "edgemesh-$role"; else act systemctl start "edgemesh-$role"; fi
  info "edgemesh-$role is running; look with: edgemesh status"
}

# With the agent's own settings: they may name another link.
clean_up() (
  if [ -f "$etc_dir/agent.env" ]; then
    set -a
    # shellcheck disable=SC1091 # written by write_env
    . "$etc_dir/agent.env"
  fi
  act "$bin" cleanup
)

uninstall() {
  roles=${role:-"agent server"}
  for r in $roles; do
    unit=$unit_dir/edgemesh-$r.service
    if have_systemd && [ -f "$unit" ]; then
      act systemctl disable --now "edgemesh-$r" || warn "edgemesh-$r could not be stopped"
    fi
    # Rules, links and routes go even if the agent was killed.
    if [ "$r" = agent ] && [ -x "$bin" ]; then clean_up || warn "cleanup failed; see above"; fi
    act rm -f "$unit" "$etc_dir/$r.env"
    [ "$purge" = 0 ] || act rm -rf "${state_dir:?}/$r"
  done
  if have_systemd; then act systemctl daemon-reload; fi
  if [ ! -f "$unit_dir/edgemesh-agent.service" ] && [ ! -f "$unit_dir/edgemesh-server.service" ]; then
    act rm -f "$bin" "$bin.previous"
    act rm -rf /var/lib/edgemesh/runtime /run/edgemesh /run/edgemesh-runtime /dev/shm/edgemesh-runtime
    act rmdir "$etc_dir" 2>/dev/null || true
    act rmdir "$state_dir" 2>/dev/null || true
  fi
  info "uninstalled ${role:-agent and server}"
  [ "$purge" = 1 ] || [ ! -d "$state_dir" ] || info "kept $state_dir (identity and state); --purge removes it"
}

main() {
  [ $# -gt 0 ] || usage
  command=$1
  shift
  role='' from='' settings='' flags='' start=1 enable=1 dry=0 purge=0 changed=0 token_file=''
  case $command in
    agent | server) role=$command ;;
    uninstall)
      case ${1:-} in agent | server)
        role=$1
        shift
        ;;
      esac
      ;;
    -h | --help) usage 0 ;;
    *) usage ;;
  esac
  while [ $# -gt 0 ]; do
    case $1 in
      --from) from=${2:?"--from needs a file"}; shift ;;
      --no-start) start=0 ;;
      --no-enable) enable=0 ;;
      --dry-run) dry=1 ;;
      --purge) purge=1 ;;
      --token-file) token_file=${2:?"--token-file needs a file or -"}; shift ;;
      --set) set_path "${2:-}"; shift ;;
      --set=*) set_path "${1#*=}" ;;
      --*=*) setting "$(env_name "${1%%=*}")" "${1#*=}"; flags="$flags ${1%%=*}" ;;
      --*)
        [ $# -ge 2 ] || die "Flag $1 has no value" "$1 VALUE"
        setting "$(env_name "$1")" "$2"
        flags="$flags $1"
        shift
        ;;
      *) die "Unknown word $1" "sh $0 --help" ;;
    esac
    shift
  done
  if [ "$command" = uninstall ]; then
    uninstall
    return
  fi
  check_host
  check_executable
  if [ -n "$token_file" ]; then
    # The token is kept in a file only the service can read, until the join has deleted it.
    kept=$state_dir/$role/join-token
    if [ "$dry" = 0 ]; then
      mkdir -p "$state_dir/$role"
      chmod 700 "$state_dir" "$state_dir/$role"
      (umask 077; if [ "$token_file" = - ]; then cat; else cat "$token_file"; fi >"$kept")
      [ -s "$kept" ] || die "The token is empty" "the token from 'edgemesh token create'"
      [ "$token_file" = - ] || rm -f "$token_file"
    fi
    setting EDGEMESH_TOKEN_FILE "$kept"
  fi
  install_role
}

# Everything is in functions: a download that broke off half-way runs nothing.
main "$@"
