#!/bin/sh
# Two memcached, and before them haproxy at port 11000, which sends connections to them in turn.
# The directory $1 holds its configuration.
set -eu
cat >"$1/haproxy.cfg" <<EOF
global
	nbthread 2
	maxconn 200
defaults
	mode tcp
	timeout connect 10s
	timeout client 1h
	timeout server 1h
	option splice-auto
frontend in
	bind :11000
	default_backend caches
backend caches
	balance roundrobin
	server one 127.0.0.1:11211
	server two 127.0.0.1:11212
EOF
memcached -u root -l 127.0.0.1 -p 11211 -t 2 -d
memcached -u root -l 127.0.0.1 -p 11212 -t 4 -d
exec haproxy -W -f "$1/haproxy.cfg"
