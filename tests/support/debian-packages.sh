#!/usr/bin/env bash
# The real programs that tests and benches talk to. As root on Debian the missing ones are
# installed; elsewhere they are named, and the tests that need them are skipped (failed under CI).
set -euo pipefail

packages() {
    cat <<'LIST'
curl                     curl      a real client
openssl                  openssl   a real client, TLS 1.2 and 1.3
nginx                    nginx     a real upstream, and the peer of the benches
libnginx-mod-stream      -         its TLS-terminating TCP proxy
chromium                 chromium  a real browser, and what shows the reports of load tests
wrk                      wrk       a real client: a load tool
haproxy                  haproxy   another TLS-terminating proxy to compare with
stunnel4                 stunnel4  another one
hitch                    hitch     another one
softhsm2                 softhsm2-util a real PKCS#11 token
opensc                   pkcs11-tool a real PKCS#11 client
libengine-pkcs11-openssl -         nginx with its key in a token, for the benches
systemd                  systemd-analyze judges the units, passes sockets; nothing of it has to run
gcc                      cc        builds a PKCS#11 module that is slow or broken on purpose
libc6-dev                -         its headers
LIST
}

missing=()
while read -r package program why; do
    if [ "$program" != - ] && command -v "$program" >/dev/null; then continue; fi
    if command -v dpkg-query >/dev/null \
        && dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok'; then continue; fi
    echo "missing: $package ($why)"
    missing+=("$package")
done < <(packages)

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing with apt-get: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null
    apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "not root, or no apt-get: install them yourself to run every test"
fi
