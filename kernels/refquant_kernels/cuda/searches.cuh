// ggml's searches for the best scale, one thread a sub-block: `methods.kquants.scales`, function by function.
//
// What they compute and why is told there. The N weights x and their importances w lie in registers: every loop over
// them is unrolled, so that no index is left to compute. Trials are a true loop. Each search returns the scale and what
// it takes to find the codes again (`inverse`, and where the codes are counted from): the codes are nearly always
// chosen anew, from the stored scale.
#pragma once
#include "arithmetic.cuh"

// ---- scale * code + minimum

// Sum of w * (scale * code + minimum - x)^2, or of w times its magnitude.
template <int N, bool ABSOLUTE>
__device__ inline float error_of(const float* x, const float* w, const float* codes, float scale, float minimum) {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float difference = scale * codes[i] + minimum - x[i];
        total = total + w[i] * (ABSOLUTE ? fabsf(difference) : difference * difference);
    }
    return total;
}

// Per weight and trial 18 operations: 6 for the code, 6 for three sums, 6 for the error. Four chains of N dependent
// additions, three of which run side by side.
template <int N, bool ABSOLUTE>
__device__ inline void scale_and_min(const float* x, const float* w, float top, float first, float step, int steps,
                                     float& scale, float& minimum, float& best_inverse, float& best_start) {
    float low = x[0], high = x[0], sum_w = w[0], sum_x = w[0] * x[0];
#pragma unroll
    for (int i = 1; i < N; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    low = low > 0.0f ? 0.0f : low;

    float codes[N];
    minimum = low;
    scale = 1.0f / (top / (high - low));
    float inverse = top / (high - low);
    inverse = inverse < INF ? inverse : 0.0f;  // rounding infinity gives code 0
#pragma unroll
    for (int i = 0; i < N; i++) codes[i] = nearest_within(inverse * (x[i] - low), 0.0f, top);
    float least = error_of<N, ABSOLUTE>(x, w, codes, scale, minimum);
    best_inverse = inverse;
    best_start = low;
#pragma unroll 1
    for (int trial = 0; trial <= steps; trial++) {
        inverse = (first + step * (float)trial + top) / (high - minimum);
        float sum_l = 0.0f, sum_ll = 0.0f, sum_xl = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float l = nearest_within(inverse * (x[i] - minimum), 0.0f, top);
            float wl = w[i] * l;
            codes[i] = l;
            sum_l = sum_l + wl;
            sum_ll = sum_ll + wl * l;
            sum_xl = sum_xl + wl * x[i];
        }
        float d = sum_w * sum_ll - sum_l * sum_l;
        float new_scale = (sum_w * sum_xl - sum_x * sum_l) / d;
        float new_min = (sum_ll * sum_x - sum_l * sum_xl) / d;
        if (new_min > 0.0f) {
            new_scale = sum_xl / sum_ll;
            new_min = 0.0f;
        }
        float error = error_of<N, ABSOLUTE>(x, w, codes, new_scale, new_min);
        if (d > 0.0f && error < least) {
            best_inverse = inverse;
            best_start = minimum;
            least = error;
            scale = new_scale;
            minimum = new_min;
        }
    }
}

// ---- scale * code, codes with a sign

// Scale and `inverse`: the codes are clip(nearest(inverse * x), -TOP, TOP - 1); both 0 below 1e-15, where `empty`.
// TAME: no x is NaN or infinite, so that no code lies beyond 2 TOP before it is limited, and float32 can round it.
template <int N, int TOP, bool TAME>
__device__ inline float symmetric_scale(const float* x, const float* w, float& inverse, bool& empty) {
    float extreme = largest_magnitude<N>(x), scale = 0.0f, best = 0.0f;
    inverse = 0.0f;
#pragma unroll 1
    for (int step = -10; step < 10; step++) {  // the first guess, then -9 to 9
        float shift = step > -10 ? 0.1f * (float)step : 0.0f;
        if (step == 0) continue;
        float trial = -((float)TOP + shift) / extreme, sum_xl = 0.0f, sum_ll = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float l = TAME ? nearest_within(trial * x[i], -(float)TOP, (float)(TOP - 1))
                           : (float)clip(nearest(trial * x[i]), -TOP, TOP - 1);
            sum_xl = sum_xl + w[i] * x[i] * l;
            sum_ll = sum_ll + w[i] * l * l;
        }
        if (step == -10) {
            inverse = trial;
            scale = sum_ll != 0.0f ? sum_xl / sum_ll : 0.0f;
            best = scale * sum_xl;
        } else if (sum_ll > 0.0f && sum_xl * sum_xl > best * sum_ll) {
            inverse = trial;
            scale = sum_xl / sum_ll;
            best = scale * sum_xl;
        }
    }
    empty = fabsf(extreme) < EPS;
    inverse = empty ? 0.0f : inverse;
    return empty ? 0.0f : scale;
}

// Improve the codes one weight at a time, in at most five rounds. BYTES: kept as bytes, and not limited from below.
template <int N, int LOW, int TOP, bool BYTES>
__device__ inline void descend(const float* x, const float* w, int* codes, float& sum_xl, float& sum_ll) {
#pragma unroll 1
    for (int round = 0; round < 5; round++) {
        bool changed = false;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float wx = w[i] * x[i], l = (float)codes[i];
            float others_xl = sum_xl - wx * l, others_ll = sum_ll - w[i] * l * l;
            int code = min(nearest(x[i] * others_ll / others_xl), TOP);
            if (!BYTES) code = max(code, LOW);
            l = (float)code;
            float new_xl = others_xl + wx * l, new_ll = others_ll + w[i] * l * l;
            bool gain = new_xl * new_xl * sum_ll > sum_xl * sum_xl * new_ll;
            bool legal = BYTES ? others_ll > 0.0f : new_ll > 0.0f;
            if (others_xl > 0.0f && legal && code != codes[i] && gain) {
                codes[i] = BYTES ? code & 255 : code;
                sum_xl = new_xl;
                sum_ll = new_ll;
                changed = true;
            }
        }
        if (!changed) break;
    }
}

// Scale; codes 0 .. 2 TOP - 1. Weights count with x^2.
template <int N, int TOP> __device__ inline float symmetric_scale_by_descent(const float* x, int* codes) {
    float extreme = largest_magnitude<N>(x), inverse = -(float)TOP / extreme, sum_xl = 0.0f, sum_ll = 0.0f, w[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        w[i] = x[i] * x[i];
        codes[i] = clip(nearest(inverse * x[i]), -TOP, TOP - 1);
        float l = (float)codes[i];
        sum_xl = sum_xl + w[i] * x[i] * l;
        sum_ll = sum_ll + w[i] * l * l;
    }
    descend<N, -TOP, TOP - 1, false>(x, w, codes, sum_xl, sum_ll);
    bool empty = fabsf(extreme) < EPS;
#pragma unroll
    for (int i = 0; i < N; i++) codes[i] = empty ? 0 : codes[i] + TOP;
    return !empty && sum_ll > 0.0f ? sum_xl / sum_ll : 0.0f;
}

// ---- scale * code, nothing negative

// Scale of the N scales (or minima) of a block; their codes, bytes.
template <int N, int TOP> __device__ inline float positive_scale(const float* x, const float* w, int* codes) {
    float peak = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) peak = x[i] > peak ? x[i] : peak;
    float inverse = (float)TOP / peak, least = 0.0f;
#pragma unroll 1
    for (int step = -5; step < 5; step++) {  // the first guess, then -4 to 4
        if (step == 0) continue;
        float trial = step > -5 ? (0.1f * (float)step + (float)TOP) / peak : inverse;
        float width = 1.0f / trial, error = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
            int code = nearest(trial * x[i]);
            code = step == -5 ? code & 255 : min(code, TOP);
            float difference = x[i] - width * (float)code;
            error = error + w[i] * difference * difference;
        }
        if (step == -5 || error < least) {
            inverse = trial;
            least = error;
        }
    }
    float sum_xl = 0.0f, sum_ll = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        codes[i] = min(nearest(inverse * x[i]), TOP);
        float l = (float)codes[i];
        sum_xl = sum_xl + w[i] * x[i] * l;
        sum_ll = sum_ll + w[i] * l * l;
        codes[i] &= 255;
    }
    descend<N, 0, TOP, true>(x, w, codes, sum_xl, sum_ll);
    bool empty = peak < EPS;
#pragma unroll
    for (int i = 0; i < N; i++) codes[i] = empty ? 0 : codes[i];
    return !empty && sum_ll > 0.0f ? sum_xl / sum_ll : 0.0f;
}
