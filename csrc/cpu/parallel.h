// Threads for a batch of independent items.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mdcp::cpu {

// Calls body(worker, item) once for every item in 0..count-1; worker in 0..threads-1 names the
// calling thread, for scratch memory. Which worker gets which item is a matter of timing, so body
// may write only what belongs to its item (or scratch). The first exception stops the batch and is
// thrown here.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
    const int workers = static_cast<int>(std::min<int64_t>(count, std::max(threads, 1)));
    if (workers <= 1) {
        for (int64_t item = 0; item < count; ++item) body(0, item);
        return;
    }
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_mutex;
    auto work = [&](int worker) {
        try {
            for (int64_t item = next++; item < count; item = next++) body(worker, item);
        } catch (...) {
            next = count;
            std::lock_guard<std::mutex> lock(failure_mutex);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    pool.reserve(workers - 1);
    try {
        for (int worker = 1; worker < workers; ++worker) pool.emplace_back(work, worker);
    } catch (const std::system_error&) {
        // No more threads to be had: those that started, and this one, do all the work.
    }
    work(0);
    for (std::thread& thread : pool) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace mdcp::cpu
