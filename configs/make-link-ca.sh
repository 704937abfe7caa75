#!/bin/sh
# A small CA for the links between proxy and nodes, and a certificate for each name given.
#   make-link-ca.sh DIRECTORY NAME...
# Existing files are kept: run it again to add a name. Keep ca.key offline.
set -eu

[ $# -ge 2 ] || { echo "usage: $0 DIRECTORY NAME..." >&2; exit 2; }
directory=$1
shift
umask 077
mkdir -p "$directory"
cd "$directory"

if [ ! -e ca.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj "/CN=offload link CA" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout ca.key -out ca.pem 2>/dev/null
    echo "made ca.pem and ca.key"
fi
for name in "$@"; do
    if [ -e "$name.key" ]; then
        echo "$name.key is there already: kept"
        continue
    fi
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
        -keyout "$name.key" -out "$name.csr" 2>/dev/null
    printf 'subjectAltName=DNS:%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$name" > "$name.ext"
    openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 \
        -extfile "$name.ext" -out "$name.pem" 2>/dev/null
    rm -f "$name.csr" "$name.ext"
    echo "made $name.pem and $name.key"
done
