#!/bin/bash
# A pipeline of several processes in one session, for tests of a move: numbers go through filters at some hundred a second.
# Prints "sum N lines M" at its end.
set -eu
echo up
for ((i = 1; i <= $1; i++)); do
	echo "$i"
	sleep 0.01
done | sed -u 's/^/n /' | while read -r _ n; do
	echo $((n * 3))
done | awk '{ s += $1; n++ } END { print "sum", s, "lines", n }'
