// Cuts the one block of scratch memory that a launcher is given into arrays.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mdcp::cuda {

class Workspace {
  public:
    explicit Workspace(void* start) : start_(static_cast<char*>(start)) {}

    // [count], aligned for any access. Without memory (a null start) only bytes() grows.
    template <class T>
    T* take(int64_t count) {
        T* const array = start_ ? reinterpret_cast<T*>(start_ + bytes_) : nullptr;
        bytes_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
#ifdef MDCP_EMULATION
        if (start_) arrays_.add(array, count * sizeof(T));
#endif
        return array;
    }

    size_t bytes() const { return bytes_; }
    bool has_memory() const { return start_ != nullptr; }

  private:
    static constexpr size_t kAlignment = 256;
    char* start_;
    size_t bytes_ = 0;
#ifdef MDCP_EMULATION
    emulation::Parts arrays_{start_};  // so that a step from one array into the next is seen
#endif
};

}  // namespace mdcp::cuda
