// What a program that runs kernels without Python needs: buffers, numbers, and a main function.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "control.h"

namespace driver {

// Device memory of exactly `count` elements: the checkers see a step beside it.
template <class T>
class Buffer {
  public:
    explicit Buffer(size_t count) : count_(count), data_(new T[count ? count : 1]) {
        std::memset(static_cast<void*>(data_.get()), 0xff, count * sizeof(T));
        emulation_add_buffer(data_.get(), count * sizeof(T));
    }
    explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
        if (count_) std::memcpy(static_cast<void*>(data_.get()), values.data(), count_ * sizeof(T));
    }
    ~Buffer() { emulation_remove_buffer(data_.get()); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return data_.get(); }
    size_t size() const { return count_; }
    bool operator==(const Buffer& other) const {
        return count_ == other.count_ &&
               std::memcmp(data_.get(), other.data_.get(), count_ * sizeof(T)) == 0;
    }

  private:
    size_t count_;
    std::unique_ptr<T[]> data_;
};

// A few small repeating values, so that ties come up.
class Numbers {
  public:
    explicit Numbers(uint32_t seed) : state_(seed * 2654435761u + 12345u) {}
    uint32_t below(uint32_t bound) {
        state_ = state_ * 1664525u + 1013904223u;
        return static_cast<uint32_t>(uint64_t{state_} * bound >> 32);
    }
    float coordinate() { return static_cast<float>(static_cast<int>(below(64)) - 32) / 8.0f; }

  private:
    uint32_t state_;
};

inline void expect(bool holds, const std::string& what) {
    if (!holds) throw std::runtime_error("wrong answer: " + what);
}

// Reads lines of "offset size [name]", the shared variables that build.py found in this program.
inline void load_shared_variables(const char* path) {
    std::ifstream file(path);
    size_t offset, size;
    for (std::string name; file >> offset >> size && std::getline(file, name);)
        emulation_add_static_shared(offset, size, name.empty() ? "" : name.c_str() + 1);
}

// main(program, shared variables' file, seed): 0 and nothing printed, or 1 and what went wrong.
template <class Body>
int run(int count, char** arguments, Body body) {
    if (count != 3) return 2;
    try {
        load_shared_variables(arguments[1]);
        emulation_set_schedule(std::strtoull(arguments[2], nullptr, 10));
        body();
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}

}  // namespace driver
