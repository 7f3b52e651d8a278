/* A ping socket at which an answer waits to be read. */
#include "../../workloads/c/workload.h"
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

int main(void)
{
	int range = open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY); /* of the network namespace of the test */
	CHECK(range >= 0 && write(range, "0 2147483647", 12) == 12, "ping_group_range");
	close(range);
	int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	char echo[10] = {8, 0, 0, 0, 0, 0, 0, 1, 'a', 'b'}, got[64];
	CHECK(fd >= 0 && sendto(fd, echo, sizeof echo, 0, (struct sockaddr *)&to, sizeof to) == sizeof echo, "the question");
	struct pollfd p = {.fd = fd, .events = POLLIN};
	CHECK(poll(&p, 1, 10000) == 1, "no answer");
	ready();
	CHECK(recv(fd, got, sizeof got, MSG_DONTWAIT) == sizeof echo && !memcmp(got + 8, "ab", 2), "the answer is lost");
	pass();
}
