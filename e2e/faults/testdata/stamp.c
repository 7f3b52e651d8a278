/* Stamps its state into a file that every host maps: whoever runs holds the number that the file has, and makes it one more. A copy that
   runs beside another one, or goes on from an older state than another has left, finds a number that is not its own. */
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct page {
	_Atomic uint64_t stamps, strangers; /* strangers: numbers that were not as the copy had left them */
};

int main(int argc, char **argv)
{
	int fd = argc == 2 ? open(argv[1], O_RDWR | O_CREAT, 0666) : -1;
	if (fd < 0 || ftruncate(fd, 4096))
		return 1;
	struct page *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return 2;
	const struct timespec pace = {0, 200000};
	for (uint64_t mine = 0;; mine++) {
		uint64_t found = mine;
		if (!__atomic_compare_exchange_n((uint64_t *)&p->stamps, &found, mine + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			__atomic_add_fetch((uint64_t *)&p->strangers, 1, __ATOMIC_SEQ_CST);
			mine = found - 1;
		}
		nanosleep(&pace, NULL);
	}
}
