// A program of many threads that sleep.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *nap(void *arg) {
	for (;;) pause();
	return arg;
}

int main(int argc, char **argv) {
	pthread_t t;
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 65536);
	for (int i = 1; i < (argc > 1 ? atoi(argv[1]) : 1); i++)
		if (pthread_create(&t, &a, nap, 0)) return 1;
	printf("ready\n");
	fflush(stdout);
	nap(0);
}
