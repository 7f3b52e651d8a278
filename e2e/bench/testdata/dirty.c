/*
 * A program for measuring a move: MIB of random resident memory, PAGES written per second uniformly over all of it, and
 * a heartbeat that notes the longest time between two beats.
 *
 *     dirty MIB PAGES
 *
 * The file "host" in its working directory says where it is. A gap after which that file says something else is the one in
 * which the program was moved.
 *
 * SIGUSR1 makes it write "beat MOVED_NS LONGEST_NS END_NS COUNT WRITTEN\n" to the file "heartbeat": the gap in which it was moved
 * last, the longest of all others, when that one ended, and how many pages it has written. It then starts the measure of gaps anew.
 * CLOCK_REALTIME is the clock because virtual hosts of one machine share it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t asked;
static void on_usr1(int s) { (void)s; asked = 1; }

static unsigned long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static char here[64];
/* moved tells whether the program is on another host than when it was asked last. */
static int moved(void)
{
	char is[sizeof here] = "";
	int f = open("host", O_RDONLY);
	if (f < 0 || read(f, is, sizeof is - 1) < 0 || close(f))
		_exit(6);
	if (!strcmp(is, here))
		return 0;
	memcpy(here, is, sizeof here);
	return 1;
}

static uint64_t x = 88172645463325252ull;
static uint64_t rnd(void)
{
	x ^= x << 13;
	x ^= x >> 7;
	return x ^= x << 17;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	size_t size = strtoul(argv[1], NULL, 10) << 20;
	double rate = atof(argv[2]);
	uint64_t *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m == MAP_FAILED)
		return 3;
	for (size_t i = 0; i < size / 8; i++)
		m[i] = rnd();
	struct sigaction sa = {.sa_handler = on_usr1};
	sigaction(SIGUSR1, &sa, NULL);
	int f = open("ready", O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (f < 0 || close(f))
		return 4;
	moved();
	unsigned long start = now(), last = start, gap = 0, across = 0, beats = 0, written = 0, end = start;
	for (;;) {
		unsigned long t = now(), since = t - last;
		last = t;
		if (since > 2000000 && moved()) /* it takes longer than that */
			across = since;
		else if (since > gap)
			gap = since, end = t;
		beats++;
		uint64_t due = rate * ((t - start) / 1e9);
		if (due > written + 4096) /* after a pause, do not make up for what was not written */
			start = t, written = 0, due = 0;
		for (; written < due; written++)
			m[rnd() % (size / 8)] = rnd();
		if (asked) {
			char line[128];
			asked = 0;
			int n = snprintf(line, sizeof line, "beat %lu %lu %lu %lu %lu\n", across, gap, end, beats, written);
			f = open("heartbeat.new", O_WRONLY | O_CREAT | O_TRUNC, 0644);
			if (f < 0 || write(f, line, n) != n || close(f) || rename("heartbeat.new", "heartbeat"))
				return 5;
			gap = across = 0;
			last = now();
		}
		struct timespec nap = {0, 200000};
		nanosleep(&nap, NULL);
	}
}
