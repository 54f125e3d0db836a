/// A Redis server of a test's own: on a free port of this machine, with nothing on disk, gone at the end.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "folder.hpp"
#include "redis_connection.hpp"
#include "store.hpp"

extern char** environ;

namespace llm::test {

/// A socket that listens on a free port of this machine.
class Listener {
public:
    Listener() {
        socket_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        if (::bind(socket_, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(socket_, 8) != 0 ||
            ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
            throw std::runtime_error("no port to listen on");
        port_ = ntohs(address.sin_port);
    }
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;
    ~Listener() { ::close(socket_); }
    int port() const { return port_; }
    int accept() const { return ::accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC); }

private:
    int socket_ = -1, port_ = 0;
};

/// Starts a program, its output in a file; -1 where there is no such program.
inline pid_t start(const std::vector<std::string>& words, const std::string& output) {
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    pid_t process = -1;
    const int failed = posix_spawnp(&process, arguments[0], &files, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    return failed == 0 ? process : -1;
}

class TestRedis {
public:
    /// more: further options of the server.
    explicit TestRedis(std::vector<std::string> more = {}) : more_(std::move(more)) {
        for (int tries = 0; tries < 5 && !runs(); ++tries) {
            port_ = Listener().port();
            start_again();
        }
        if (!runs()) throw std::runtime_error("redis-server does not start: " + ::test::bytes_of(folder_ / "log"));
    }
    TestRedis(const TestRedis&) = delete;
    TestRedis& operator=(const TestRedis&) = delete;
    ~TestRedis() { kill(); }

    RedisServer address(std::chrono::milliseconds timeout = std::chrono::seconds(20)) const {
        return {"127.0.0.1", port_, timeout};
    }
    void kill() {
        if (!runs()) return;
        ::kill(process_, SIGKILL);
        ::waitpid(process_, nullptr, 0);
        process_ = -1;
    }
    void stop() const {
        ::kill(process_, SIGSTOP);
        ::waitpid(process_, nullptr, WUNTRACED);
    }
    void go_on() const { ::kill(process_, SIGCONT); }

    /// On the port that it had; it ends with this process, however that ends. Whether it runs then.
    bool start_again() {
        std::vector<std::string> words{"setpriv",      "--pdeathsig",
                                       "KILL",         "redis-server",
                                       "--port",       std::to_string(port_),
                                       "--bind",       "127.0.0.1",
                                       "--save",       "",
                                       "--appendonly", "no",
                                       "--dir",        folder_ / ""};
        words.insert(words.end(), more_.begin(), more_.end());
        process_ = start(words, folder_ / "log");
        for (int tries = 0; tries < 2000 && runs(); ++tries) {
            try {
                RedisConnection connection(address());
                connection.send({"PING"});
                if (connection.receive().text() == "PONG") return true;
            } catch (const StoreUnavailable&) {
                // Not yet.
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
            if (::waitpid(process_, nullptr, WNOHANG) == process_) process_ = -1;
        }
        return false;
    }

    RedisReply ask(const std::vector<std::string_view>& words) const {
        RedisConnection connection(address());
        connection.send(words);
        return connection.receive();
    }
    /// The names of all keys that a pattern fits.
    std::vector<std::string> keys(std::string_view pattern) const {
        const RedisReply reply = ask({"KEYS", pattern});
        std::vector<std::string> out;
        for (std::size_t i = 0; i < reply.size(); ++i) out.emplace_back(reply[i].text().value());
        return out;
    }

private:
    bool runs() const { return process_ > 0; }

    ::test::Folder folder_;
    std::vector<std::string> more_;
    int port_ = 0;
    pid_t process_ = -1;
};

/// False, and said loudly, where there is no redis-server; ctest looks for these words.
inline bool has_redis() {
    const ::test::Folder folder;
    const pid_t process = start({"redis-server", "--version"}, folder / "version");
    int status = 1;
    if (process > 0) ::waitpid(process, &status, 0);
    if (status == 0) return true;
    const char* const ci = std::getenv("CI");
    if (ci != nullptr && std::string_view(ci) == "true")
        throw std::runtime_error("there is no redis-server, and CI=true");
    std::cerr << "xquant: SKIPPED, no redis-server (package redis-server): nothing shows what the store does on one\n";
    return false;
}

}  // namespace llm::test
