#!/bin/sh
# Installs edgemesh on a Linux host: executable, hardened systemd unit, environment file (0600), state folder.
# What it can do is in usage() below. Everything is in functions that are called in the last line: a download that
# broke off half-way runs nothing.
set -eu

bin_dir=${INSTALL_EDGEMESH_BIN_DIR:-/usr/local/bin}
unit_dir=${INSTALL_EDGEMESH_SYSTEMD_DIR:-/etc/systemd/system}
etc_dir=${INSTALL_EDGEMESH_ETC_DIR:-/etc/edgemesh}
state_dir=${INSTALL_EDGEMESH_STATE_DIR:-/var/lib/edgemesh}
ready_seconds=${INSTALL_EDGEMESH_READY_SECONDS:-60}
bin=$bin_dir/edgemesh
# Whom the services run as, where systemd runs them; and by what the uninstall knows that it was made here.
user=edgemesh
user_comment='edgemesh services'
# This script itself, kept for the next upgrade and for the uninstall.
kept_script=$bin_dir/edgemesh-install
# Where this script was published; scripts/release.sh fills it in.
published=''
# The oldest C library the product is made for: RHEL 8's. Deno's builds ask for 2.27.
min_glibc=2.28

usage() {
  cat <<'EOF'
Installs edgemesh on a Linux host with glibc 2.28 or newer, x86_64 or aarch64.

  install.sh server [flags of edgemesh server]
  install.sh agent --node-name edge-1 --server wss://HOST --ca-pin sha256:… --token-file FILE [more flags]
  install.sh uninstall [agent|server] [--purge]

Piped: curl -fsSL URL/install.sh | EDGEMESH_TOKEN=… sh -s - agent …

Where the executable comes from:
  --from FILE      a file: no network is used
  --release URL    folder with edgemesh-linux-ARCH and SHA256SUMS (default: INSTALL_EDGEMESH_URL, or where this script
                   was published). HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used; http:// needs --sha256
  --sha256 HEX     what the file must be, whatever the release says (INSTALL_EDGEMESH_SHA256)
  neither          dist/edgemesh of the checkout this script is in

Options: --no-start, --no-enable, --dry-run, --purge (with uninstall: identity and state, too).
All other flags are the role's; they and EDGEMESH_* variables become lines of /etc/edgemesh/ROLE.env and stay over upgrades.
INSTALL_EDGEMESH_{BIN_DIR,SYSTEMD_DIR,ETC_DIR,STATE_DIR} move the folders; INSTALL_EDGEMESH_READY_SECONDS (60) is how long
an upgrade may take to become ready before the executable from before is put back.
EOF
  exit "${1:-2}"
}

info() { echo "[INFO]  $*"; }
warn() { echo "[WARN]  $*" >&2; }
die() {
  echo "[ERROR] $1; try: $2" >&2
  exit 1
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
  # A musl system may have a loader of glibc's name that only stands in for it.
  libc=$(ldd --version 2>&1 || true)
  case $libc in *musl*) has_loader=0 ;; *)
    has_loader=0
    for loader in /lib*/ld-linux-*.so.* /lib/*/ld-linux-*.so.*; do
      [ ! -e "$loader" ] || has_loader=1
    done
    ;;
  esac
  [ "$has_loader" = 1 ] ||
    die "This system has no glibc (Alpine and other musl systems are not supported)" "a Debian, Ubuntu, RHEL, Fedora or SUSE host"
  glibc=$(printf '%s\n' "$libc" | sed -n '1s/.* \([0-9][0-9]*\.[0-9][0-9]*\)[^0-9]*$/\1/p')
  if [ -n "$glibc" ] && [ "$(printf '%s\n%s\n' "$glibc" "$min_glibc" | sort -t. -k1,1n -k2,2n | head -n 1)" != "$min_glibc" ]; then
    die "This system has glibc $glibc; edgemesh needs $min_glibc or newer" "Debian 11, Ubuntu 20.04, RHEL 8 or newer"
  fi
}

# Makes the services' own user, once.
make_user() {
  have_systemd || return 0
  ! getent passwd "$user" >/dev/null || return 0
  if [ "$dry" = 1 ]; then
    echo "would make the system user $user"
    return 0
  fi
  command -v useradd >/dev/null 2>&1 ||
    die "There is no useradd here to make the user $user, as whom the service runs" "the package passwd or shadow-utils; or make a system user $user by hand"
  nologin=$(command -v nologin) || nologin=/bin/false
  # An operator may have made the group already, for who may read the admin socket.
  if getent group "$user" >/dev/null; then own_group="--gid $user"; else own_group=--user-group; fi
  # shellcheck disable=SC2086 # two words
  said=$(useradd --system $own_group --no-create-home --home-dir /nonexistent --shell "$nologin" --comment "$user_comment" "$user" 2>&1) ||
    die "The user $user cannot be made ($said)" "useradd --system $user"
}

# Takes the user away if it was made here.
remove_user() {
  case $(getent passwd "$user") in *":$user_comment:"*) ;; *) return 0 ;; esac
  act userdel "$user" || warn "the user $user could not be removed"
}

# A value of the environment file as it will be.
setting_of() { sed -n "s/^$1=//p" "$work/env" | tr -d "'"; }

# Gives the service's files to its user; those of an earlier install were root's. Where root runs it, they stay root's.
give_to_user() {
  have_systemd || return 0
  act chown -R "$user:" "$state_dir/$role"
  # What the service reads, and an operator has closed to all but root.
  for file in "$etc_dir/$role.yaml" "$(setting_of EDGEMESH_KUBECONFIG)"; do
    case $file in "$etc_dir"/*) if [ -f "$file" ]; then act chgrp "$user" "$file" && act chmod g+r "$file"; fi ;; esac
  done
}

have_systemd() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; }

# Environment name of a flag or of a path of --set: --node-name → EDGEMESH_NODE_NAME, dns.extraZones → EDGEMESH_DNS_EXTRA_ZONES.
env_name() { printf 'EDGEMESH_%s' "$(printf '%s' "${1#--}" | sed 's/\([a-z0-9]\)\([A-Z]\)/\1_\2/g' | tr 'a-z.-' 'A-Z__')"; }

# Remembers a setting for the environment file. A flag that is given again, like --server, makes a list.
setting() { # name, value
  case $2 in *[!-A-Za-z0-9_./:,@%+=\[\]]*)
    # systemd and the shell read these alike in single quotes, and nothing else.
    case $2 in *"'"* | *"
"*) die "The value of $1 holds a quote or a line break" "a configuration file, $etc_dir/$role.yaml" ;; esac
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

# EDGEMESH_* of the caller's environment are settings, too; a flag wins. What steers builds and tests is not one.
# The proxy that led here leads to the server as well.
settings_from_environment() {
  for name in $(env | sed -n 's/^\(EDGEMESH_[A-Z0-9_]*\)=.*/\1/p'); do
    case $name in
      EDGEMESH_TOKEN | EDGEMESH_EXE | EDGEMESH_CACHE | EDGEMESH_RUNTIME_DIR | EDGEMESH_TEST* | EDGEMESH_LAB | EDGEMESH_BINARY | \
        EDGEMESH_GZIP_LEVEL | EDGEMESH_RECORD | EDGEMESH_KUBE* | EDGEMESH_PEERS) continue ;;
    esac
    printf '%s\n' "$settings" | grep -q "^$name=" || eval "setting $name \"\${$name-}\""
  done
  [ "$role" = agent ] || return 0
  proxy=${HTTPS_PROXY:-${https_proxy:-}}
  except=${NO_PROXY:-${no_proxy:-}}
  [ -z "$proxy" ] || setting HTTPS_PROXY "$proxy"
  [ -z "$except" ] || setting NO_PROXY "$except"
}

sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

# Downloads a URL into a file, or dies with what the tool said.
fetch() { # URL, file
  # curl takes HTTP_PROXY in small letters only; others use both.
  http_proxy=${http_proxy:-${HTTP_PROXY:-}}
  [ -z "$http_proxy" ] || export http_proxy
  case $1 in https:*) only='=https' ;; *) only='=http,https' ;; esac
  if command -v curl >/dev/null 2>&1; then
    # A stalled download ends; an https address never leads to an http one.
    said=$(curl -fsSL --proto "$only" --connect-timeout 15 --speed-limit 1000 --speed-time 30 --retry 2 -o "$2" "$1" 2>&1) && return 0
  elif command -v wget >/dev/null 2>&1; then
    said=$(wget -q -T 30 -O "$2" "$1" 2>&1) && return 0
  else
    die "Neither curl nor wget is here to download $1" "install one of them, or --from FILE with a copy of the executable"
  fi
  said=$(printf '%s' "$said" | tail -n 1)
  die "$1 cannot be downloaded${said:+ ($said)}" "the address in a browser, HTTPS_PROXY for a proxy, or --from FILE with a copy"
}

# The executable this is about ends up in $from. Nothing is replaced before it is known to be what was meant.
find_executable() {
  if [ -z "$from" ] && [ -z "$release" ]; then
    here=$(CDPATH='' cd -- "$(dirname -- "$0")" 2>/dev/null && pwd) || here=
    if [ -f "$here/build.ts" ]; then
      from=$here/../dist/edgemesh
      [ -f "$from" ] || die "This checkout has not been built: there is no dist/edgemesh" "./scripts/deno task build"
    fi
  fi
  if [ -n "$from" ]; then
    [ -f "$from" ] || die "There is no file $from" "--from FILE with a built executable"
    [ -z "$sha256" ] || [ "$(sha256_of "$from")" = "$sha256" ] ||
      die "$from has the SHA-256 $(sha256_of "$from"), not $sha256" "the file that belongs to this hash"
    return
  fi
  [ -n "$release" ] || die "No executable and no release given" "--from dist/edgemesh, or --release URL"
  case $release in
    https://?* | http://127.0.0.1[:/]* | http://localhost[:/]*) ;;
    http://?*) [ -n "$sha256" ] || die "Whoever is on the way to $release can change what it sends" "an https:// address, or --sha256 HEX" ;;
    *) die "The release $release is no https:// address" "--release https://HOST/FOLDER" ;;
  esac
  case $(uname -m) in x86_64 | amd64) artefact=edgemesh-linux-amd64 ;; *) artefact=edgemesh-linux-arm64 ;; esac
  fetch "$release/SHA256SUMS" "$work/SHA256SUMS"
  listed=$(sed -n "s/^\([0-9a-f]\{64\}\)  $artefact\$/\1/p" "$work/SHA256SUMS")
  [ -n "$listed" ] || die "$release/SHA256SUMS has no line for $artefact" "the address of a release folder"
  wanted=${sha256:-$listed}
  [ "$wanted" = "$listed" ] || die "The release has $artefact with the SHA-256 $listed, not $wanted" "the release that belongs to this hash"
  if [ -f "$bin" ] && [ "$(sha256_of "$bin")" = "$wanted" ]; then
    info "$bin is already the release's: nothing to download"
    from=$bin
    return
  fi
  if [ "$dry" = 1 ]; then
    from=$release/$artefact
    return
  fi
  info "downloading $release/$artefact"
  make_bin_dir
  # Beside its place: one rename later, and whether programs can run there shows now.
  download=$(mktemp "$bin_dir/.edgemesh.XXXXXX")
  fetch "$release/$artefact" "$download"
  got=$(sha256_of "$download")
  [ "$got" = "$wanted" ] ||
    die "The download of $artefact is damaged or not what was published: its SHA-256 is $got, not $wanted; nothing was changed" "again; if it stays, ask whoever runs $release"
  chmod 755 "$download"
  from=$download
  # The script of the same release, for upgrades and the uninstall: a pipe leaves none behind.
  fetch "$release/install.sh" "$work/install.sh"
  listed=$(sed -n 's/^\([0-9a-f]\{64\}\)  install\.sh$/\1/p' "$work/SHA256SUMS")
  [ "$(sha256_of "$work/install.sh")" = "$listed" ] || die "install.sh of the release is not what its SHA256SUMS says; nothing was changed" "again"
}

make_bin_dir() {
  if mkdir -p "$bin_dir" 2>/dev/null && [ -w "$bin_dir" ]; then return 0; fi
  die "$bin_dir cannot be written" "INSTALL_EDGEMESH_BIN_DIR=/opt/bin, or another folder"
}

# Whatever may be wrong with what was given is found before anything is changed.
check_executable() {
  # A dry run does not even unpack it.
  [ "$dry" = 0 ] || return 0
  version=$("$from" version 2>/dev/null) || die "$from does not run on this host" "the build for $(uname -m) with glibc"
  help=$("$from" "$role" --help)
  for flag in $flags; do
    # The daemon ignores variables it does not know, as they may be the other role's: a slip must be found here.
    printf '%s\n' "$help" | grep -q -e "^ *\(-., \)\{0,1\}$flag " ||
      die "edgemesh $role has no flag $flag" "edgemesh $role --help"
  done
}

# The environment file as it will be: settings of an earlier install stay unless they are given anew.
make_env() {
  env_file=$etc_dir/$role.env
  names=$(printf '%s\n' "$settings" | sed -n 's/^\([A-Z0-9_]*\)=.*/\1/p')
  if [ -f "$env_file" ]; then
    while IFS= read -r line; do
      key=${line%%=*}
      printf '%s\n' "$names" | grep -qx "$key" || printf '%s\n' "$line"
    done <"$env_file"
  fi >"$work/env"
  [ -z "$settings" ] || printf '%s\n' "$settings" >>"$work/env"
  [ "$dry" = 0 ] || return 0
  # With the file's settings only, as the service will have them.
  problems=$(
    for name in $(env | sed -n 's/^\(EDGEMESH_[A-Z0-9_]*\)=.*/\1/p'); do
      [ "$name" = EDGEMESH_RUNTIME_DIR ] || unset "$name"
    done
    set -a
    # shellcheck disable=SC1091 # written above
    . "$work/env"
    "$from" config validate --role "$role" 2>&1
  ) || die "These settings cannot be used: $(printf '%s' "$problems" | sed 's/^error: //' | tr -s '\n ' ' ')" "edgemesh $role --help"
}

install_role() {
  changed=0
  binary_changed=0
  if [ -f "$bin" ] && cmp -s "$from" "$bin"; then
    info "$bin is already this build"
  elif [ "$dry" = 1 ]; then
    echo "would install $from as $bin"
  else
    make_bin_dir
    # Complete beside the old one, then one rename: a running agent keeps its file, a failed copy changes nothing.
    if [ -z "$download" ]; then
      download=$(mktemp "$bin_dir/.edgemesh.XXXXXX")
      cat "$from" >"$download"
      chmod 755 "$download"
    fi
    if [ -f "$bin" ]; then ln -f "$bin" "$bin.previous" 2>/dev/null || cp -p "$bin" "$bin.previous"; fi
    mv "$download" "$bin"
    download=
    changed=1
    binary_changed=1
    info "installed $bin ($version)"
  fi
  keep_script
  make_user
  was_owner=$(stat -c %U "$state_dir/$role" 2>/dev/null) || was_owner=root
  act mkdir -p "$etc_dir" "$state_dir/$role"
  act chmod 755 "$state_dir"
  act chmod 700 "$state_dir/$role"
  # A folder that is named and missing would keep the service from being ready.
  manifests=$(setting_of EDGEMESH_MANIFESTS)
  case $manifests in "$etc_dir"/*) [ -d "$manifests" ] || act mkdir -p -m 755 "$manifests" ;; esac
  put "$work/env" "$etc_dir/$role.env" 600
  make_unit >"$work/unit"
  act mkdir -p "$unit_dir"
  put "$work/unit" "$unit_dir/edgemesh-$role.service" 644
  give_to_user
  start_unit
}

keep_script() {
  [ "$dry" = 0 ] || return 0
  script=$work/install.sh
  # From a file or a checkout it is the one that runs; from a pipe it was downloaded above, or is there already.
  if [ ! -f "$script" ]; then case $0 in *install.sh | */edgemesh-install) script=$0 ;; *) return 0 ;; esac; fi
  if ! cmp -s "$script" "$kept_script"; then
    cat "$script" >"$kept_script.new"
    chmod 755 "$kept_script.new"
    mv "$kept_script.new" "$kept_script"
  fi
}

# Writes a file if it differs, and keeps the one before for a rollback.
put() { # new, place, mode
  if [ -f "$2" ] && cmp -s "$1" "$2"; then return 0; fi
  if [ "$dry" = 1 ]; then
    echo "would write $2"
    return 0
  fi
  [ ! -f "$2" ] || cp -p "$2" "$work/$(basename "$2").old"
  (umask 077 && cat "$1" >"$2.new")
  chmod "$3" "$2.new"
  mv "$2.new" "$2"
  changed=1
}

make_unit() {
  caps=CAP_NET_BIND_SERVICE
  [ "$role" = server ] || caps="CAP_NET_ADMIN CAP_NET_BIND_SERVICE"
  cat <<EOF
[Unit]
Description=edgemesh $role
Documentation=file://$etc_dir
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
User=$user
Group=$user
AmbientCapabilities=$caps
EnvironmentFile=-$etc_dir/$role.env
# Where the executable keeps what it may keep of its own.
Environment=XDG_CACHE_HOME=/var/cache/edgemesh
# As root: a restored backup, or a start by hand, may have left files of root's.
ExecStartPre=+/bin/chown -R $user: $state_dir/$role
ExecStart=$bin $role
ExecReload=/bin/kill -HUP \$MAINPID
Restart=always
RestartSec=2
# Wrong settings do not become right by trying again.
RestartPreventExitStatus=2
# Without a server and without a snapshot an agent is up but not ready: waiting is right, restarting is not.
TimeoutStartSec=infinity
TimeoutStopSec=35
# The event loop says twice a minute that it turns.
WatchdogSec=60
LimitNOFILE=65536
# Keys are in memory.
LimitCORE=0
RuntimeDirectory=edgemesh
# The group reads agent.sock and server.sock in it; nobody else has business here.
RuntimeDirectoryMode=0750
RuntimeDirectoryPreserve=yes
StateDirectory=edgemesh/$role
StateDirectoryMode=0700
CacheDirectory=edgemesh
CacheDirectoryMode=0700
UMask=0077
CapabilityBoundingSet=$caps
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
# The server, too, asks netlink: glibc does for this host's addresses.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# No MemoryDenyWriteExecute: the JavaScript engine compiles at run time.
EOF
  if [ "$state_dir" != /var/lib/edgemesh ]; then echo "ReadWritePaths=$state_dir/$role"; fi
  if [ "$role" = agent ]; then
    cat <<EOF
# What the agent's user may not, root does around it: dns.integrate's change of the host's resolver, made when the agent
# answers and taken back when it ends in whatever way; and taking away what an agent left that is not started again.
Environment=EDGEMESH_SERVICE_HOOK=1
ExecStartPost=+/bin/sh -c 'test ! -e /run/edgemesh/agent.resolver || exec $bin service-hook started'
ExecReload=+/bin/sh -c 'test ! -e /run/edgemesh/agent.resolver || exec $bin service-hook reloaded'
ExecStopPost=+/bin/sh -c 'case \$\$SERVICE_RESULT/\$\$EXIT_STATUS in timeout/*|exit-code/2) ;; *) test -e /run/edgemesh/agent.resolver || exit 0 ;; esac; exec $bin service-hook stopped'
EOF
  fi
  cat <<EOF

[Install]
WantedBy=multi-user.target
EOF
}

start_unit() {
  if ! have_systemd; then
    if [ -x /sbin/openrc-run ] || [ -d /run/openrc ]; then info "this host runs OpenRC, for which there is no unit; run this as a service:"
    else info "systemd does not run here; start it with:"; fi
    echo "    set -a; . $etc_dir/$role.env; set +a; exec $bin $role"
    return
  fi
  act systemctl daemon-reload
  [ "$enable" = 0 ] || act systemctl enable --quiet "edgemesh-$role"
  [ "$start" = 1 ] || return 0
  if [ "$dry" = 1 ]; then
    echo "would run: systemctl restart edgemesh-$role, and wait until it is ready"
    return
  fi
  was=$(property ActiveState)
  if [ "$changed" = 0 ] && [ "$was" = active ]; then
    info "edgemesh-$role is running, and nothing has changed"
    return
  fi
  restart_unit
  case $(outcome) in
    ready) info "edgemesh-$role is ready; look with: edgemesh status" ;;
    waiting)
      [ "$was" != active ] || roll_back "was not ready after $ready_seconds s"
      status=$(property StatusText)
      warn "edgemesh-$role runs, but is not ready after $ready_seconds s${status:+ ($status)}; look with: edgemesh check"
      ;;
    *)
      [ "$was" != active ] || roll_back "does not start"
      journal
      die "edgemesh-$role does not start; the lines above say why" "install again with the right flags, or edgemesh check --pre"
      ;;
  esac
  other=server
  [ "$role" = agent ] || other=agent
  if [ "$binary_changed" = 1 ] && systemctl --quiet is-active "edgemesh-$other" 2>/dev/null; then
    info "edgemesh-$other still runs the executable from before; systemctl restart edgemesh-$other"
  fi
  if [ -f "$unit_dir/edgemesh-$other.service" ] && ! grep -q '^User=' "$unit_dir/edgemesh-$other.service"; then
    warn "edgemesh-$other still runs as root, from a unit of before; edgemesh-install $other gives it to the user $user"
  fi
}

property() { systemctl show --property="$1" --value "edgemesh-$role"; }
journal() { journalctl --unit="edgemesh-$role" --lines=15 --no-pager --output=cat >&2 2>/dev/null || true; }

restart_unit() {
  before=$(property InvocationID)
  # One that starts over and over would keep its count of starts, by which it is judged.
  [ "$(property ActiveState)" = active ] || systemctl stop "edgemesh-$role"
  systemctl reset-failed --quiet "edgemesh-$role" 2>/dev/null || true
  systemctl restart --no-block "edgemesh-$role"
}

# What became of a restart: ready, waiting, or failed.
outcome() {
  seconds=0
  while [ "$seconds" -le "$ready_seconds" ]; do
    # The old process may still be there: a start has an id of its own.
    if [ "$(property InvocationID)" != "$before" ]; then
      case $(property ActiveState) in
        active) echo ready && return ;;
        failed) echo failed && return ;;
        activating) [ "$(property NRestarts)" -lt 2 ] || { echo failed && return; } ;;
      esac
    fi
    sleep 1
    seconds=$((seconds + 1))
  done
  echo waiting
}

# Everything as it was before this run, and the service with it.
roll_back() { # what is wrong with the new one
  warn "the new edgemesh-$role $1; its last lines:"
  journal
  if [ "$binary_changed" = 1 ]; then mv "$bin.previous" "$bin"; fi
  if [ -f "$work/$role.env.old" ]; then mv "$work/$role.env.old" "$etc_dir/$role.env"; fi
  if [ -f "$work/edgemesh-$role.service.old" ]; then mv "$work/edgemesh-$role.service.old" "$unit_dir/edgemesh-$role.service"; fi
  systemctl daemon-reload
  # A unit from before there was a user cannot read what is another's: it has no right to.
  if ! grep -q "^User=" "$unit_dir/edgemesh-$role.service"; then
    systemctl stop "edgemesh-$role"
    chown -R "$was_owner:" "$state_dir/$role"
    [ ! -d /run/edgemesh ] || chown -R root: /run/edgemesh
  fi
  restart_unit
  now=$(outcome)
  [ "$now" = ready ] || die "The new edgemesh-$role $1, and the one before is $now, too" "journalctl -u edgemesh-$role"
  die "The new edgemesh-$role $1; the one before runs again, with its settings" "journalctl -u edgemesh-$role"
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
      act systemctl disable --quiet --now "edgemesh-$r" || warn "edgemesh-$r could not be stopped"
      act systemctl reset-failed --quiet "edgemesh-$r" 2>/dev/null || true
    fi
    # Rules, links and routes go even if the agent was killed.
    if [ "$r" = agent ] && [ -x "$bin" ]; then clean_up || warn "cleanup failed; see above"; fi
    act rm -f "$unit" "$etc_dir/$r.env"
    [ "$purge" = 0 ] || act rm -rf "${state_dir:?}/$r"
  done
  if have_systemd; then act systemctl daemon-reload; fi
  if [ ! -f "$unit_dir/edgemesh-agent.service" ] && [ ! -f "$unit_dir/edgemesh-server.service" ]; then
    act rm -f "$bin" "$bin.previous" "$kept_script"
    act rm -rf /var/lib/edgemesh/runtime /var/cache/edgemesh /run/edgemesh /run/edgemesh-runtime /dev/shm/edgemesh-runtime
    # What stays must not become the next user's of that number.
    [ ! -d "$state_dir" ] || act chown -R root: "$state_dir"
    remove_user
    act rmdir "$etc_dir/manifests" 2>/dev/null || true
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
  role='' from='' settings='' flags='' start=1 enable=1 dry=0 purge=0 token_file='' download=''
  release=${INSTALL_EDGEMESH_URL:-$published}
  sha256=${INSTALL_EDGEMESH_SHA256:-}
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
      --release) release=${2:?"--release needs a URL"}; shift ;;
      --sha256) sha256=${2:?"--sha256 needs 64 digits"}; shift ;;
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
  release=${release%/}
  check_host
  work=$(mktemp -d)
  trap 'rm -rf "$work" ${download:+"$download"}' EXIT
  trap 'exit 130' INT TERM HUP
  if [ "$token_file" = - ]; then
    case $0 in *install.sh | */edgemesh-install) ;; *)
      die "With the script itself coming through stdin, the token cannot" "EDGEMESH_TOKEN=… before sh, or --token-file FILE" ;;
    esac
  fi
  settings_from_environment
  find_executable
  check_executable
  # From where this server came, its nodes can come.
  case $role:$release:$from in
    server:https://*:"$bin" | server:https://*:"$download") printf '%s\n' "$settings" | grep -q '^EDGEMESH_INSTALL_URL=' || setting EDGEMESH_INSTALL_URL "$release" ;;
  esac
  # The token is kept in a file only the service can read, until the join has deleted it.
  kept=$state_dir/$role/join-token
  if [ -n "$token_file${EDGEMESH_TOKEN:-}" ]; then setting EDGEMESH_TOKEN_FILE "$kept"; fi
  make_env
  keep_token
  install_role
}

keep_token() {
  [ -n "$token_file${EDGEMESH_TOKEN:-}" ] && [ "$dry" = 0 ] || return 0
  case $token_file in
    '') printf '%s\n' "$EDGEMESH_TOKEN" ;;
    -) cat ;;
    *) cat "$token_file" || die "The token file $token_file cannot be read" "the file with the token" ;;
  esac >"$work/token"
  [ -s "$work/token" ] || die "The token is empty" "the token from 'edgemesh token create'"
  mkdir -p "$state_dir/$role"
  chmod 755 "$state_dir"
  chmod 700 "$state_dir/$role"
  (umask 077 && cat "$work/token" >"$kept")
  case $token_file in '' | -) ;; *) rm -f "$token_file" ;; esac
}

main "$@"
