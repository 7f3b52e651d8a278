/* A UDP socket that holds part of a datagram, by MSG_MORE alone. */
#include "../../workloads/c/workload.h"
#include <arpa/inet.h>
#include <sys/socket.h>

int main(void)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof at;
	int in = socket(AF_INET, SOCK_DGRAM, 0), out = socket(AF_INET, SOCK_DGRAM, 0);
	char got[16];
	CHECK(!bind(in, (struct sockaddr *)&at, size) && !getsockname(in, (struct sockaddr *)&at, &size) && !connect(out, (struct sockaddr *)&at, size), "sockets");
	CHECK(send(out, "part", 4, MSG_MORE) == 4, "MSG_MORE");
	ready();
	CHECK(send(out, "s", 1, 0) == 1 && recv(in, got, sizeof got, MSG_DONTWAIT) == 5 && !memcmp(got, "parts", 5), "the part is lost");
	pass();
}
