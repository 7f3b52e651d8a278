#!/bin/sh
# Compiles DIR/source.c again and again, until there is a file DIR/stop, and compares each object with DIR/want.o. Says so in DIR/said:
# how many objects there are, then "done", or "wrong" and what is.
dir=$1
export TMPDIR="$dir"
n=0
while [ ! -e "$dir/stop" ]; do
	gcc -O1 -c -o "$dir/got.o" "$dir/source.c" || { echo "wrong: gcc after $n" >>"$dir/said"; exit 1; }
	cmp "$dir/got.o" "$dir/want.o" || { echo "wrong: object $n" >>"$dir/said"; exit 1; }
	n=$((n + 1))
	echo "$n" >>"$dir/said"
done
echo "done" >>"$dir/said"
