#include "redis_connection.hpp"

#include <fmt/format.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "store.hpp"

namespace llm {
namespace {

/// A write to a server that is gone raises SIGPIPE, which ends a process that does not expect it. While one of these
/// lives, the calling thread gets the error alone.
class NoSigpipe {
public:
    NoSigpipe() {
        sigset_t pending;
        sigemptyset(&pipe_);
        sigaddset(&pipe_, SIGPIPE);
        sigpending(&pending);
        was_pending_ = sigismember(&pending, SIGPIPE) == 1;
        pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
    }
    NoSigpipe(const NoSigpipe&) = delete;
    NoSigpipe& operator=(const NoSigpipe&) = delete;
    ~NoSigpipe() {
        const timespec at_once{};
        if (!was_pending_) sigtimedwait(&pipe_, nullptr, &at_once);
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }

private:
    sigset_t pipe_{}, before_{};
    bool was_pending_ = false;
};

}  // namespace

RedisReply::RedisReply(redisReply* reply) : owner_(reply, freeReplyObject), at_(reply) {}

std::size_t RedisReply::size() const { return at_->type == REDIS_REPLY_ARRAY ? at_->elements : 0; }
RedisReply RedisReply::operator[](std::size_t i) const { return {owner_, at_->element[i]}; }

std::optional<std::string_view> RedisReply::text() const {
    if (at_->type != REDIS_REPLY_STRING && at_->type != REDIS_REPLY_STATUS) return std::nullopt;
    return std::string_view(at_->str, static_cast<std::size_t>(at_->len));
}
std::optional<std::int64_t> RedisReply::number() const {
    if (at_->type != REDIS_REPLY_INTEGER) return std::nullopt;
    return at_->integer;
}
std::optional<std::string_view> RedisReply::complaint() const {
    if (at_->type != REDIS_REPLY_ERROR) return std::nullopt;
    return std::string_view(at_->str, static_cast<std::size_t>(at_->len));
}

RedisConnection::RedisConnection(RedisServer server)
    : server_(std::move(server)), context_(redisConnectNonBlock(server_.host.c_str(), server_.port), redisFree) {
    if (!context_) fail("there is no memory for a connection");
    if (context_->err != 0) fail(context_->errstr);
    if (wait(POLLOUT, Clock::now() + server_.timeout) == 0)
        fail(fmt::format("no connection within {} ms", server_.timeout.count()));
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(context_->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    if (error != 0) fail(std::generic_category().message(error));
}

void RedisConnection::send(const std::vector<std::string_view>& words) {
    std::vector<const char*> at;
    std::vector<std::size_t> sizes;
    for (const std::string_view word : words) {
        at.push_back(word.data());
        sizes.push_back(word.size());
    }
    const auto count = static_cast<int>(words.size());
    if (redisAppendCommandArgv(context_.get(), count, at.data(), sizes.data()) != REDIS_OK) fail(context_->errstr);
}

RedisReply RedisConnection::receive() {
    const Clock::time_point deadline = Clock::now() + server_.timeout;
    bool sent = false;  // all that was handed over
    for (;;) {
        void* reply = nullptr;
        if (redisGetReplyFromReader(context_.get(), &reply) != REDIS_OK) fail(context_->errstr);
        if (reply != nullptr) return RedisReply(static_cast<redisReply*>(reply));
        const int events = wait(sent ? POLLIN : POLLIN | POLLOUT, deadline);
        if (events == 0) fail(fmt::format("no answer within {} ms", server_.timeout.count()));
        if ((events & POLLOUT) != 0) {
            const NoSigpipe guard;
            int done = 0;
            if (redisBufferWrite(context_.get(), &done) != REDIS_OK) fail(context_->errstr);
            sent = done != 0;
        }
        if ((events & ~POLLOUT) != 0 && redisBufferRead(context_.get()) != REDIS_OK) fail(context_->errstr);
    }
}

RedisReply RedisConnection::receive_accepted() {
    RedisReply reply = receive();
    if (const auto complaint = reply.complaint()) fail(std::string(*complaint));
    return reply;
}

int RedisConnection::wait(int events, Clock::time_point deadline) const {
    for (;;) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
        pollfd one{context_->fd, static_cast<short>(events), 0};
        const int ready = poll(&one, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
        if (ready > 0) return one.revents;
        if (ready == 0) return 0;
        if (errno != EINTR) fail(std::generic_category().message(errno));
    }
}

void RedisConnection::fail(const std::string& why) const {
    throw StoreUnavailable(fmt::format("the Redis server {}:{}: {}", server_.host, server_.port, why));
}

}  // namespace llm
