/* Connections of an ordinary user to daemons outside of the tree, of every type: connected anew if the file "reconnect" is there, else
 * hung up. */
#include "../../workloads/c/workload.h"
#include <grp.h>
#include <sys/socket.h>
#include <sys/un.h>

static const char *names[3] = {"stream", "seqpacket", "dgram"};
static const int types[3] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};

int main(void)
{
	int s[3], again = !access("reconnect", F_OK);
	char buf[64];
	CHECK(!setgroups(0, NULL) && !setresgid(2, 2, 2) && !setresuid(1, 1, 1), "another user");
	for (int i = 0; i < 3; i++) {
		struct sockaddr_un a = {.sun_family = AF_UNIX};
		char dir[80];
		CHECK(getcwd(dir, sizeof dir), "getcwd");
		snprintf(a.sun_path, sizeof a.sun_path, "%s/%s", dir, names[i]);
		s[i] = socket(AF_UNIX, types[i], 0);
		CHECK(!connect(s[i], (struct sockaddr *)&a, sizeof a), "%s", a.sun_path);
		CHECK(send(s[i], "hello", 5, 0) == 5, "send to %s", names[i]);
		if (types[i] != SOCK_DGRAM)
			CHECK(recv(s[i], buf, 7, 0) == 7 && !memcmp(buf, "welcome", 7), "welcome of %s", names[i]);
	}
	ready();
	for (int i = 0; i < 3; i++) {
		int how = again ? 5 : -1;
		if (types[i] != SOCK_DGRAM && !again)
			CHECK(recv(s[i], buf, sizeof buf, 0) == 4 && !memcmp(buf, "left", 4) && recv(s[i], buf, sizeof buf, 0) == 0, "what %s had sent", names[i]);
		CHECK(send(s[i], "after", 5, MSG_NOSIGNAL) == how, "send to %s afterwards", names[i]);
		if (!again)
			CHECK(errno == (types[i] == SOCK_DGRAM ? ECONNREFUSED : EPIPE), "error of %s", names[i]);
	}
	pass();
}
