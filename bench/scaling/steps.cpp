#include "steps.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <stdexcept>

#include <xquant/persistence.hpp>

#include "../roofline.hpp"
#include "compiled/best.hpp"

namespace bench {
namespace {

namespace xq = xquant;

/// A page of 128 tokens is encoded once in so many steps.
constexpr std::size_t page_steps = 128;

double wall_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Runs tasks in order and keeps what each took.
struct Recorder {
    std::vector<Call>* calls;
    bool attends = false;

    template <class F>
    void parallel_for(std::size_t n, F&& f) {
        Call& call = calls->emplace_back(Call{attends, {}});
        call.seconds.reserve(n);
        double before = thread_seconds();
        for (std::size_t i = 0; i < n; ++i) {
            f(i);
            const double now = thread_seconds();
            call.seconds.push_back(now - before);
            before = now;
        }
    }
};

template <class Values>
double median(Values values) {
    if (values.empty()) return 0;
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

template <class Of, class Get>
std::vector<double> each(const std::vector<Of>& of, Get&& get) {
    std::vector<double> out;
    for (const Of& one : of) out.push_back(get(one));
    return out;
}

template <class Get, class Of>
double mean(const std::vector<Of>& of, Get&& get) {
    double sum = 0;
    for (const Of& one : of) sum += get(one);
    return of.empty() ? 0 : sum / static_cast<double>(of.size());
}

/// Whether two steps were cut into the same tasks.
bool alike(const std::vector<Call>& a, const std::vector<Call>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Call& left, const Call& right) {
        return left.attends == right.attends && left.seconds.size() == right.seconds.size();
    });
}

/// Task by task the median of the steps that were cut as the last one.
std::vector<Call> median_calls(const std::vector<std::vector<Call>>& steps) {
    if (steps.empty()) return {};
    std::vector<Call> out = steps.back();
    for (std::size_t c = 0; c < out.size(); ++c) {
        for (std::size_t t = 0; t < out[c].seconds.size(); ++t) {
            std::vector<double> times;
            for (const auto& step : steps) {
                if (alike(step, steps.back())) times.push_back(step[c].seconds[t]);
            }
            out[c].seconds[t] = median(times);
        }
    }
    return out;
}

/// The executor says which part of a step runs.
void say_attends(Recorder& threads, bool attends) { threads.attends = attends; }
template <class Executor>
void say_attends(Executor&, bool) {}

}  // namespace

Subject::Subject(const Shape& shape, const Kind& kind, std::size_t layers)
    : shape_(&shape), kind_(&kind), layers_(layers), random_(shape, kind, layers), cache_(kind.make(random_.model())) {
    grown_ = cache_->create();
}

void Subject::grow(std::size_t tokens) {
    constexpr std::size_t at_once = RandomModel::period;
    while (size_ < tokens) {
        const std::size_t n = std::min({at_once - size_ % at_once, tokens - size_});
        const RandomModel::Rows rows = random_.rows(size_, n);
        auto step = cache_->begin({{grown_, n}});
        for (std::size_t layer = 0; layer < layers_; ++layer) {
            if (kind_->input == xq::LayerInput::x) {
                step.append(layer, rows.x);
            } else {
                step.append_kv(layer, rows.k, rows.v);
            }
        }
        step.commit();
        size_ += n;
    }
}

std::vector<xq::Sequence> Subject::sequences(std::size_t tokens, std::size_t count) {
    std::vector<xq::Sequence> out{cache_->fork(grown_, tokens)};
    if (count == 1) return out;
    std::vector<std::byte> saved;
    xq::save(*cache_, std::span<const xq::Sequence>(out.data(), 1),
             [&saved](std::span<const std::byte> bytes) { saved.insert(saved.end(), bytes.begin(), bytes.end()); });
    while (out.size() < count) {
        const xq::Loaded loaded =
            xq::load(*cache_, std::span<const std::byte>(saved), xq::LoadOptions{.map = false, .verify = false});
        out.push_back(loaded.sequences.front());
    }
    return out;
}

void Subject::drop(const std::vector<xq::Sequence>& sequences) {
    for (const xq::Sequence sequence : sequences) cache_->drop(sequence);
}

Cell::Cell(Subject& subject, std::size_t tokens, std::size_t count, llm::ThreadPool* two, double seconds,
           std::size_t least)
    : subject_(&subject),
      sequences_(subject.sequences(tokens, count)),
      tokens_(tokens),
      two_(two),
      seconds_(seconds),
      least_(least) {
    for (const xq::Sequence sequence : sequences_) parts_.push_back({sequence, 1});
    const std::vector<float> q = random_queries(subject.shape(), 1);
    for (std::size_t i = 0; i < count; ++i) q_.insert(q_.end(), q.begin(), q.end());
    out_.resize(q_.size());
}

Cell::~Cell() { subject_->drop(sequences_); }

bool Cell::attended() const { return whole_.size() >= page_steps || (whole_.size() >= least_ && spent_ >= seconds_); }

bool Cell::done() const { return attended() && whole_.size() + appends_.size() >= page_steps; }

template <class Executor>
Cell::Times Cell::step(Executor& threads, bool attends) {
    const std::size_t count = sequences_.size();
    const RandomModel::Rows one = subject_->random().rows(tokens_ + added_, 1);
    // Every sequence gets the same token.
    const auto repeated = [count](const xq::MatrixView& row, std::vector<float>& into) {
        if (row.empty()) return xq::MatrixView();
        into.resize(count * row.cols);
        for (std::size_t i = 0; i < count; ++i) std::memcpy(into.data() + i * row.cols, row.row(0), row.cols * 4);
        return xq::MatrixView(into.data(), count, row.cols);
    };
    const RandomModel::Rows rows{repeated(one.x, x_), repeated(one.k, k_), repeated(one.v, v_)};
    const xq::MatrixView q(q_.data(), count, q_.size() / count);
    Times out;
    double wall = 0, start = 0;
    const auto from = [&] {
        wall = wall_seconds();
        start = thread_seconds();
    };
    const auto until = [&](double& part) {
        part += thread_seconds() - start;
        out.wall += wall_seconds() - wall;
    };
    from();
    auto step = subject_->cache().begin(parts_);
    until(out.begin);
    for (std::size_t layer = 0; layer < subject_->layers(); ++layer) {
        if (attends) evict_caches();
        say_attends(threads, false);
        from();
        if (rows.x.empty()) {
            step.append_kv(layer, rows.k, rows.v, threads);
        } else {
            step.append(layer, rows.x, threads);
        }
        until(out.append);
        if (!attends) continue;
        say_attends(threads, true);
        from();
        step.attend(layer, q, out_.data(), 0, threads);
        until(out.attend);
    }
    from();
    step.commit();
    until(out.commit);
    ++added_;
    return out;
}

void Cell::check() {
    const std::size_t width = out_.size() / sequences_.size();
    const auto differs = [](const char* what) {
        throw std::runtime_error(std::string("an answer of ") + what + " differs");
    };
    // Sums may be taken in another order where pages are cut otherwise.
    const std::vector<double> first(out_.begin(), out_.begin() + static_cast<std::ptrdiff_t>(width));
    for (std::size_t i = 1; i < sequences_.size(); ++i) {
        const auto at = out_.begin() + static_cast<std::ptrdiff_t>(i * width);
        const std::vector<float> other(at, at + static_cast<std::ptrdiff_t>(width));
        if (!(relative_error(other, first, 1) <= 1e-3)) differs("equal sequences");
    }
    // The exact answer is that to the rows of the first repetition of the text, and takes long for many of them.
    if (added_ != 1 || tokens_ > 512) return;
    const Shape& shape = subject_->shape();
    const std::vector<float> answer(out_.begin(), out_.begin() + static_cast<std::ptrdiff_t>(width));
    error_ = relative_error(answer, exact_attention(shape, shape.layer.head_dim, tokens_, 1), 1);
    if (!(error_ <= subject_->kind().bound)) differs(subject_->kind().name.c_str());
}

void Cell::advance() {
    if (attended()) {
        xq::Serial serial;
        appends_.push_back(step(serial, false));
        return;
    }
    std::vector<Call> calls;
    Recorder recorder{&calls};
    Times one = step(recorder, true);
    check();
    one.outside = one.append + one.attend;
    for (const Call& call : calls) one.outside -= std::accumulate(call.seconds.begin(), call.seconds.end(), 0.0);
    whole_.push_back(one);
    recorded_.push_back(std::move(calls));
    spent_ += one.begin + one.append + one.attend + one.commit;  // other programs take turns on a busy machine
    if (two_ == nullptr) return;
    const Times both = step(*two_, true);
    check();
    two_walls_.push_back(both.wall);
}

Measured Cell::result() const {
    Measured out;
    out.scheme = subject_->kind().name;
    out.shape = subject_->shape().name;
    out.tokens = tokens_;
    out.sequences = sequences_.size();
    out.layers = subject_->layers();
    out.steps = whole_.size();
    out.appends = appends_.size();
    std::vector<Times> all = whole_;
    all.insert(all.end(), appends_.begin(), appends_.end());
    out.begin = mean(all, [](const Times& of) { return of.begin; });
    out.append = mean(all, [](const Times& of) { return of.append; });
    out.commit = mean(all, [](const Times& of) { return of.commit; });
    out.attend = median(each(whole_, [](const Times& of) { return of.attend; }));
    out.wall = median(each(whole_, [](const Times& of) { return of.wall; }));
    out.wall_two = median(two_walls_);
    out.error = error_;
    if (two_ != nullptr) out.calls = median_calls(recorded_);
    out.handling = out.begin + out.commit + median(each(whole_, [](const Times& of) { return of.outside; }));
    const xq::Model& model = subject_->random().model();
    out.load = static_cast<double>(sequences_.size()) * subject_->kind().attend(model, tokens_);
    out.load += subject_->kind().append(model, sequences_.size());
    out.load = static_cast<double>(out.layers) * out.load;
    return out;
}

}  // namespace bench
