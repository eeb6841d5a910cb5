#!/bin/sh
# Makes the certificates of the TLS test: an authority, a server at 127.0.0.1, a client. Valid for 100 years; they protect nothing.
set -eu
cd "$(dirname "$0")"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj "/CN=test authority" \
    -addext "basicConstraints=critical,CA:TRUE" -keyout ca.key -out ca.pem
for who in server client; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=test $who" -keyout $who.key -out $who.csr
    printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n' > $who.ext
    openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 36500 -extfile $who.ext -out $who.pem
done
rm -f ca.key ca.srl ./*.csr ./*.ext
