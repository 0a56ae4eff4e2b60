/* What a layer is ================================================================================================== */

/* A picture is bytes: the channels of a pixel lie side by side, and pixels row by row. From a pixel to the next are
   "step" bytes: more than it has channels, where it is a part of a wider one. So splitting and concatenating is no
   work: each layer writes its part where the whole is read. */

/* An activation function: from a number of 16 bits to the byte that the next layer reads. Beyond first and last it is
   constant. In between it is a straight line, or a table with an entry for every 2^shift numbers. Within an entry the
   result changes at most once: from its cut on, it is the value of the entry that follows. */
typedef struct {
    uint8_t value, cut;
} Entry;

typedef struct {
    int32_t first, last;
    int shift;
    int32_t slope, offset; /* of a line */
    int32_t step;          /* of a line on which a number may lie halfway between two bytes: numbers from byte to byte */
    const Entry *table;    /* 0 for a line */
} Function;

/* Weights lie in blocks of 16 output channels, the rest in a narrower one, for a processor that computes as many at
   once: four weights of each channel, which meet four neighbouring bytes, then the next four. Each row of a window is
   filled up with zeros to a multiple of four. Weights of up to 4 bits lie two in a byte. */
typedef struct {
    int in_height, in_width, in_channels, in_step; /* channels of one group */
    int out_height, out_width, out_channels, out_step;
    int groups, size, stride, padding;
    int band;            /* rows of output for which the input is copied once; 0 where it can stay where it is */
    uint8_t zero_point;  /* the byte that stands for 0 in the input */
    uint8_t packed;      /* whether weights lie two in a byte */
    const int8_t *weights;
    const int32_t *bias; /* without what the zero point adds to each sum */
    const uint32_t *multiplier; /* sum * multiplier / 2^shift is what the function reads */
    const uint8_t *shift;
    uint8_t narrow;      /* whether 32 bits do for that, and sums are shifted to the left by "lift" first */
    uint8_t lift;
    uint8_t ties;        /* whether it ever matters to which side a number halfway between two is rounded */
    const Function *function;
} Convolution;

typedef struct {
    int pixels, channels, first_step, second_step, out_step;
    int zero_point, highest; /* of the grid that both summands and the result lie on */
} Sum;

typedef struct {
    int pixels, channels, in_step;
    int zero_point, new_zero_point, highest;
    int64_t numerator, denominator; /* their ratio turns a sum over all pixels into the mean on the new grid */
} Average;

enum { LANES = 16 }; /* output channels of a block */

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* Multiply and add ================================================================================================= */

/* One window for each of up to PIXELS outputs: "rows" rows of "length" bytes, "pitch" bytes from one to the next. */
typedef struct {
    const uint8_t *start[8];
    int count, rows, length, pitch;
} Windows;

/* multiply() computes sums[p][c] = bias[c] + all products of window p and the weights of channel c, for a block of
   "width" channels. Whatever the processor, these are the same integers: no sum of ours leaves 32 bits, which was
   proven from the weights when this file was written. */

#if !defined(MODEL_PORTABLE) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) \
    && defined(__AVX512VL__)
#define MODEL_AVX512
#include <immintrin.h>
enum { PIXELS = 8 };

INLINE __m512i load_weights(const int8_t *weights, __mmask16 lanes, int packed)
{
    if (!packed)
        return _mm512_maskz_loadu_epi32(lanes, weights);
    const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi16(lanes, weights));
    const __m512i low = _mm512_and_si512(pairs, _mm512_set1_epi16(0x000F));
    const __m512i high = _mm512_and_si512(_mm512_slli_epi16(pairs, 4), _mm512_set1_epi16(0x0F00));
    const __m512i eight = _mm512_set1_epi8(8); /* (n ^ 8) - 8 is n with the sign of its 4 bits */
    return _mm512_sub_epi8(_mm512_xor_si512(_mm512_or_si512(low, high), eight), eight);
}

/* VPDPBUSD: 64 bytes times 64 weights, four products each added to 16 sums. "pixels" and "packed" are constants. */
INLINE void multiply_pixels(int pixels, int packed, const Windows *windows, const int8_t *weights, const int32_t *bias,
                            int width, int32_t sums[][LANES])
{
    const __mmask16 lanes = (__mmask16)((1u << width) - 1);
    const uint8_t *x[8];
    __m512i total[8];
    for (int p = 0; p < pixels; p++) {
        x[p] = windows->start[p < windows->count ? p : 0];
        total[p] = _mm512_maskz_loadu_epi32(lanes, bias);
    }
    for (int row = 0; row < windows->rows; row++) {
        for (int k = 0; k < windows->length; k += 4) {
            const __m512i four_weights = load_weights(weights, lanes, packed);
            weights += packed ? 2 * width : 4 * width;
            for (int p = 0; p < pixels; p++) {
                int32_t four_bytes;
                memcpy(&four_bytes, x[p] + k, 4);
                total[p] = _mm512_dpbusd_epi32(total[p], _mm512_set1_epi32(four_bytes), four_weights);
            }
        }
        for (int p = 0; p < pixels; p++)
            x[p] += windows->pitch;
    }
    for (int p = 0; p < pixels; p++)
        _mm512_storeu_si512(sums[p], total[p]);
}

static void multiply(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias, int width,
                     int32_t sums[][LANES])
{
    if (packed)
        multiply_pixels(8, 1, windows, weights, bias, width, sums);
    else if (windows->count > 4)
        multiply_pixels(8, 0, windows, weights, bias, width, sums);
    else
        multiply_pixels(4, 0, windows, weights, bias, width, sums);
}

#else

/* Weight number "i" of those that lie two in a byte. */
INLINE int unpacked(const int8_t *weights, int i)
{
    const int nibble = (i % 2 ? (uint8_t)weights[i / 2] >> 4 : weights[i / 2]) & 15;
    return (nibble ^ 8) - 8; /* n with the sign of its 4 bits */
}

/* In plain C, for any processor. */
static void multiply_plainly(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias, int width,
                             int32_t sums[][LANES])
{
    for (int p = 0; p < windows->count; p++) {
        const int8_t *w = weights;
        for (int c = 0; c < width; c++)
            sums[p][c] = bias[c];
        for (int row = 0; row < windows->rows; row++)
            for (int k = 0; k < windows->length; k += 4) {
                const uint8_t *x = windows->start[p] + row * windows->pitch + k;
                if (packed)
                    for (int c = 0; c < width; c++, w += 2)
                        sums[p][c] += x[0] * unpacked(w, 0) + x[1] * unpacked(w, 1) + x[2] * unpacked(w, 2)
                                      + x[3] * unpacked(w, 3);
                else
                    for (int c = 0; c < width; c++, w += 4)
                        sums[p][c] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
    }
}

#if !defined(MODEL_PORTABLE) && defined(__AVX2__)
#define MODEL_AVX2
#include <immintrin.h>
enum { PIXELS = 2 };

/* VPMADDWD: bytes and weights are made 16 bits wide, multiplied, and added in pairs. (VPMADDUBSW multiplies twice as
   many as bytes, and adds them in 16 bits: two products of 255 * 127 do not fit.) "quads" times 4 channels. */
INLINE void multiply_quads(int quads, const Windows *windows, const int8_t *weights, const int32_t *bias,
                           int32_t sums[][LANES])
{
    const uint8_t *x[2] = {windows->start[0], windows->start[windows->count - 1]};
    __m256i total[2][4];
    for (int p = 0; p < 2; p++)
        for (int q = 0; q < quads; q++)
            total[p][q] = _mm256_setzero_si256();
    for (int row = 0; row < windows->rows; row++) {
        for (int k = 0; k < windows->length; k += 4, weights += 16 * quads) {
            __m256i four_bytes[2];
            for (int p = 0; p < 2; p++) {
                int32_t bytes;
                memcpy(&bytes, x[p] + k, 4);
                four_bytes[p] = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(bytes)));
            }
            for (int q = 0; q < quads; q++) {
                const __m128i bytes = _mm_loadu_si128((const __m128i *)(weights + 16 * q));
                const __m256i four_weights = _mm256_cvtepi8_epi16(bytes);
                for (int p = 0; p < 2; p++)
                    total[p][q] = _mm256_add_epi32(total[p][q], _mm256_madd_epi16(four_bytes[p], four_weights));
            }
        }
        x[0] += windows->pitch;
        x[1] += windows->pitch;
    }
    for (int p = 0; p < 2; p++)
        for (int q = 0; q < quads; q++) { /* two sums are left of each channel */
            const __m256i both = _mm256_hadd_epi32(total[p][q], total[p][q]);
            const __m256i four = _mm256_permute4x64_epi64(both, 0xD8);
            const __m128i start = _mm_loadu_si128((const __m128i *)(bias + 4 * q));
            _mm_storeu_si128((__m128i *)(sums[p] + 4 * q), _mm_add_epi32(start, _mm256_castsi256_si128(four)));
        }
}

#elif !defined(MODEL_PORTABLE) && defined(__ARM_FEATURE_DOTPROD)
#define MODEL_NEON
#include <arm_neon.h>
enum { PIXELS = 4 };

/* SDOT: 16 bytes times 16 weights, four products each added to 4 sums. It takes signed bytes: we give it x - 128, and
   add what is missing, 128 times the sum of the weights, which the same instruction computes. */
INLINE void multiply_quads(int quads, const Windows *windows, const int8_t *weights, const int32_t *bias,
                           int32_t sums[][LANES])
{
    const uint8_t *x[4];
    int32x4_t total[4][4], missing[4];
    for (int p = 0; p < 4; p++)
        x[p] = windows->start[p < windows->count ? p : 0];
    for (int q = 0; q < quads; q++) {
        missing[q] = vdupq_n_s32(0);
        for (int p = 0; p < 4; p++)
            total[p][q] = vld1q_s32(bias + 4 * q);
    }
    for (int row = 0; row < windows->rows; row++) {
        for (int k = 0; k < windows->length; k += 4, weights += 16 * quads) {
            int8x16_t four_bytes[4];
            for (int p = 0; p < 4; p++) {
                uint32_t bytes;
                memcpy(&bytes, x[p] + k, 4);
                four_bytes[p] = vreinterpretq_s8_u32(vdupq_n_u32(bytes ^ 0x80808080u));
            }
            for (int q = 0; q < quads; q++) {
                const int8x16_t four_weights = vld1q_s8(weights + 16 * q);
                missing[q] = vdotq_s32(missing[q], four_weights, vdupq_n_s8(-128));
                for (int p = 0; p < 4; p++)
                    total[p][q] = vdotq_s32(total[p][q], four_weights, four_bytes[p]);
            }
        }
        for (int p = 0; p < 4; p++)
            x[p] += windows->pitch;
    }
    for (int p = 0; p < 4; p++)
        for (int q = 0; q < quads; q++)
            vst1q_s32(sums[p] + 4 * q, vsubq_s32(total[p][q], missing[q]));
}

#else
enum { PIXELS = 1 };
#endif

static void multiply(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias, int width,
                     int32_t sums[][LANES])
{
#if defined(MODEL_AVX2) || defined(MODEL_NEON)
    if (!packed && width == 16) {
        multiply_quads(4, windows, weights, bias, sums);
        return;
    }
    if (!packed && width == 8) {
        multiply_quads(2, windows, weights, bias, sums);
        return;
    }
#endif
    multiply_plainly(windows, weights, packed, bias, width, sums);
}
#endif

/* From sums to bytes =============================================================================================== */

/* sum * multiplier / 2^shift, rounded to nearest, ties to even. */
INLINE int64_t rescale(int32_t sum, uint32_t multiplier, int shift)
{
    const int64_t product = (int64_t)sum * multiplier;
    const int64_t odd = (product >> shift) & 1;
    return (product + ((int64_t)1 << (shift - 1)) - 1 + odd) >> shift;
}

INLINE uint8_t look_up(const Function *function, int32_t x)
{
    const int32_t place = x - function->first;
    const Entry *entry = function->table + (place >> function->shift);
    const int32_t rest = place & ((1 << function->shift) - 1);
    return rest < entry->cut ? entry->value : entry[1].value;
}

INLINE uint8_t on_line(const Function *function, int32_t x)
{
    const int32_t y = (x * function->slope + function->offset) >> function->shift;
    const int between = function->step && 2 * (y * function->step - x) == function->step;
    return (uint8_t)(between ? y & ~1 : y); /* the even one of two that are equally near */
}

/* Sums of a pixel to its bytes, one at a time. */
static inline void finish_plainly(const Convolution *layer, int channel, int width, const int32_t *sums, uint8_t *output)
{
    const Function *function = layer->function;
    for (int c = 0; c < width; c++) {
        const int64_t scaled = rescale(sums[c], layer->multiplier[channel + c], layer->shift[channel + c]);
        const int64_t above = scaled < function->first ? function->first : scaled;
        const int32_t x = (int32_t)(above > function->last ? function->last : above);
        output[c] = function->table ? look_up(function, x) : on_line(function, x);
    }
}

/* finish() does so for a block of channels of several pixels. Where the layer is "narrow", 16 bits of each factor are
   multiplied at a time: with sum = high * 2^16 + low, (sum * multiplier) >> 16 is high * multiplier plus
   (low * multiplier) >> 16. PMADDWD takes the multiplier for signed, 2^16 too small, hence the term in the middle. */

#if defined(MODEL_AVX512)

INLINE __m512i rescale_narrow(__m512i sum, __m512i multiplier, __m512i shift, __m512i half, int ties)
{
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i high = _mm512_madd_epi16(sum, _mm512_slli_epi32(multiplier, 16));
    const __m512i middle = _mm512_and_si512(sum, _mm512_set1_epi32(-65536));
    const __m512i low = _mm512_mulhi_epu16(sum, multiplier);
    const __m512i product = _mm512_add_epi32(_mm512_add_epi32(high, middle), low);
    const __m512i rounded = _mm512_srav_epi32(_mm512_add_epi32(product, half), shift);
    if (!ties)
        return rounded;
    const __m512i rest = _mm512_and_si512(product, _mm512_sub_epi32(_mm512_add_epi32(half, half), one));
    const __m512i not_half = _mm512_or_si512(_mm512_xor_si512(rest, half), _mm512_mullo_epi16(sum, multiplier));
    const __mmask16 tie = _mm512_testn_epi32_mask(not_half, not_half);
    return _mm512_mask_sub_epi32(rounded, _mm512_mask_test_epi32_mask(tie, rounded, one), rounded, one);
}

/* Eight sums in 64 bits. */
INLINE __m256i rescale_eight(__m256i sums, __m256i multipliers, __m128i shifts, int ties)
{
    const __m512i one = _mm512_set1_epi64(1), shift = _mm512_cvtepu8_epi64(shifts);
    const __m512i half = _mm512_srli_epi64(_mm512_sllv_epi64(one, shift), 1);
    __m512i product = _mm512_mullo_epi64(_mm512_cvtepi32_epi64(sums), _mm512_cvtepu32_epi64(multipliers));
    if (ties) /* where the result would be even, half must not be reached */
        product = _mm512_sub_epi64(product, _mm512_andnot_si512(_mm512_srav_epi64(product, shift), one));
    return _mm512_cvtsepi64_epi32(_mm512_srav_epi64(_mm512_add_epi64(product, half), shift));
}

/* Storing under a mask would be one instruction, and takes several times as long on some processors. */
INLINE void store_bytes(uint8_t *output, int width, __m128i bytes)
{
    if (width == 16)
        _mm_storeu_si128((__m128i *)output, bytes);
    else if (width == 8)
        _mm_storel_epi64((__m128i *)output, bytes);
    else
        for (int c = 0; c < width; c++, bytes = _mm_srli_si128(bytes, 1))
            output[c] = (uint8_t)_mm_cvtsi128_si32(bytes);
}

/* "narrow", "ties" and "kind" are constants where this is called, so that the loop over pixels has no branch. */
enum { LINE, STEPPED_LINE, TABLE };

INLINE void finish_pixels(int narrow, int ties, int kind, const Convolution *layer, int channel, int width, int count,
                          int32_t sums[][LANES], uint8_t *output)
{
    const Function function = *layer->function;
    const int step = layer->out_step;
    const __mmask16 lanes = (__mmask16)((1u << width) - 1);
    const __m512i first = _mm512_set1_epi32(function.first), last = _mm512_set1_epi32(function.last);
    const __m512i slope = _mm512_set1_epi32(function.slope), offset = _mm512_set1_epi32(function.offset);
    const __m512i byte_step = _mm512_set1_epi32(function.step), half_step = _mm512_srli_epi32(byte_step, 1);
    const __m128i function_shift = _mm_cvtsi32_si128(function.shift), lift = _mm_cvtsi32_si128(layer->lift);
    const __m512i multiplier = _mm512_maskz_loadu_epi32(lanes, layer->multiplier + channel);
    const __m128i shift = _mm_maskz_loadu_epi8(lanes, layer->shift + channel);
    const __m512i rest_shift = _mm512_add_epi32(_mm512_cvtepu8_epi32(shift), _mm512_set1_epi32(layer->lift - 16));
    const __m512i half = _mm512_srli_epi32(_mm512_sllv_epi32(_mm512_set1_epi32(1), rest_shift), 1);
    for (int p = 0; p < count; p++) {
        __m512i x, sum = _mm512_loadu_si512(sums[p]);
        if (narrow) {
            x = rescale_narrow(_mm512_sll_epi32(sum, lift), multiplier, rest_shift, half, ties);
        } else {
            const __m256i high = rescale_eight(_mm512_extracti64x4_epi64(sum, 1),
                                               _mm512_extracti64x4_epi64(multiplier, 1), _mm_srli_si128(shift, 8),
                                               ties);
            const __m256i low = rescale_eight(_mm512_castsi512_si256(sum), _mm512_castsi512_si256(multiplier), shift,
                                              ties);
            x = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        }
        x = _mm512_min_epi32(_mm512_max_epi32(x, first), last);
        if (kind == TABLE) {
            const __m512i place = _mm512_sub_epi32(x, first), entry = _mm512_srl_epi32(place, function_shift);
            const __m512i rest = _mm512_sub_epi32(place, _mm512_sll_epi32(entry, function_shift));
            /* value, cut, value of the next entry and its cut, in four bytes */
            const __m512i found = _mm512_i32gather_epi32(entry, function.table, 2);
            const __m512i cut = _mm512_and_si512(_mm512_srli_epi32(found, 8), _mm512_set1_epi32(255));
            x = _mm512_mask_srli_epi32(found, _mm512_cmpge_epi32_mask(rest, cut), found, 16);
        } else {
            const __m512i y = _mm512_sra_epi32(_mm512_add_epi32(_mm512_mullo_epi32(x, slope), offset), function_shift);
            const __m512i above = _mm512_sub_epi32(_mm512_mullo_epi32(y, byte_step), x);
            const __mmask16 between = kind == STEPPED_LINE ? _mm512_cmpeq_epi32_mask(above, half_step) : 0;
            x = _mm512_mask_and_epi32(y, between, y, _mm512_set1_epi32(~1));
        }
        store_bytes(output + p * step, width, _mm512_cvtepi32_epi8(x));
    }
}

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    const int kind = layer->function->table ? TABLE : layer->function->step ? STEPPED_LINE : LINE;
    const int form = 6 * layer->narrow + 3 * layer->ties + kind;
    switch (form) {
#define FORM(narrow, ties, kind) \
    case 6 * narrow + 3 * ties + kind: \
        finish_pixels(narrow, ties, kind, layer, channel, width, count, sums, output); \
        break;
#define KINDS(narrow, ties) FORM(narrow, ties, LINE) FORM(narrow, ties, STEPPED_LINE) FORM(narrow, ties, TABLE)
        KINDS(0, 0) KINDS(0, 1) KINDS(1, 0) KINDS(1, 1)
    }
}

#elif defined(MODEL_AVX2)

/* Eight sums of a narrow layer. */
INLINE __m256i finish_eight(const Convolution *layer, const Function *function, __m256i sum, __m256i multiplier,
                            __m256i shift)
{
    const __m256i one = _mm256_set1_epi32(1), half = _mm256_srli_epi32(_mm256_sllv_epi32(one, shift), 1);
    sum = _mm256_sll_epi32(sum, _mm_cvtsi32_si128(layer->lift));
    const __m256i high = _mm256_madd_epi16(sum, _mm256_slli_epi32(multiplier, 16));
    const __m256i middle = _mm256_and_si256(sum, _mm256_set1_epi32(-65536));
    const __m256i low = _mm256_mulhi_epu16(sum, multiplier);
    const __m256i product = _mm256_add_epi32(_mm256_add_epi32(high, middle), low);
    __m256i x = _mm256_srav_epi32(_mm256_add_epi32(product, half), shift);
    if (layer->ties) {
        const __m256i rest = _mm256_and_si256(product, _mm256_sub_epi32(_mm256_add_epi32(half, half), one));
        const __m256i not_half = _mm256_or_si256(_mm256_xor_si256(rest, half), _mm256_mullo_epi16(sum, multiplier));
        const __m256i tie = _mm256_cmpeq_epi32(not_half, _mm256_setzero_si256());
        x = _mm256_sub_epi32(x, _mm256_and_si256(_mm256_and_si256(x, one), tie));
    }
    const __m256i first = _mm256_set1_epi32(function->first);
    x = _mm256_min_epi32(_mm256_max_epi32(x, first), _mm256_set1_epi32(function->last));
    const __m128i function_shift = _mm_cvtsi32_si128(function->shift);
    if (!function->table) {
        const __m256i rise = _mm256_mullo_epi32(x, _mm256_set1_epi32(function->slope));
        const __m256i y = _mm256_sra_epi32(_mm256_add_epi32(rise, _mm256_set1_epi32(function->offset)), function_shift);
        if (!function->step)
            return y;
        const __m256i step = _mm256_set1_epi32(function->step);
        const __m256i above = _mm256_sub_epi32(_mm256_mullo_epi32(y, step), x);
        const __m256i between = _mm256_cmpeq_epi32(above, _mm256_srli_epi32(step, 1));
        return _mm256_andnot_si256(_mm256_and_si256(between, one), y);
    }
    const __m256i place = _mm256_sub_epi32(x, first), entry = _mm256_srl_epi32(place, function_shift);
    const __m256i rest = _mm256_sub_epi32(place, _mm256_sll_epi32(entry, function_shift));
    /* value, cut, value of the next entry and its cut, in four bytes */
    const __m256i found = _mm256_i32gather_epi32((const int *)(const void *)function->table, entry, 2);
    const __m256i cut = _mm256_and_si256(_mm256_srli_epi32(found, 8), _mm256_set1_epi32(255));
    const __m256i value = _mm256_blendv_epi8(_mm256_srli_epi32(found, 16), found, _mm256_cmpgt_epi32(cut, rest));
    return _mm256_and_si256(value, _mm256_set1_epi32(255));
}

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    for (int p = 0; p < count; p++, output += layer->out_step) {
        int c = 0;
        for (; layer->narrow && c + 8 <= width; c += 8) {
            const __m256i sum = _mm256_loadu_si256((const __m256i *)(sums[p] + c));
            const __m256i multiplier = _mm256_loadu_si256((const __m256i *)(layer->multiplier + channel + c));
            const __m256i shift = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(layer->shift + channel + c)));
            const __m256i shift_left = _mm256_add_epi32(shift, _mm256_set1_epi32(layer->lift - 16));
            const __m256i x = finish_eight(layer, layer->function, sum, multiplier, shift_left);
            const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
            _mm_storel_epi64((__m128i *)(output + c), _mm_packus_epi16(words, words));
        }
        finish_plainly(layer, channel + c, width - c, sums[p] + c, output + c);
    }
}

#else

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    for (int p = 0; p < count; p++, output += layer->out_step)
        finish_plainly(layer, channel, width, sums[p], output);
}
#endif

/* Layers =========================================================================================================== */

/* Channels of some pixels, 16 bytes at a time where they come in sixteens. */
static void copy(int pixels, int channels, int in_step, int out_step, const uint8_t *input, uint8_t *output)
{
    for (int p = 0; p < pixels; p++, input += in_step, output += out_step)
        if (channels % 16 == 0)
            for (int c = 0; c < channels; c += 16)
                memcpy(output + c, input + c, 16);
        else
            memcpy(output, input, (size_t)channels);
}

static uint8_t border_rows[BORDER_BYTES]; /* the rows under a band of output, with the border around the picture */

static void copy_rows(const Convolution *layer, const uint8_t *input, int first, int count)
{
    const int width = layer->in_width, channels = layer->in_channels, step = layer->in_step;
    const int border = layer->padding * channels;
    uint8_t *to = border_rows;
    for (int y = first; y < first + count; y++) {
        if (y < 0 || y >= layer->in_height) {
            memset(to, layer->zero_point, (size_t)(width * channels + 2 * border));
            to += width * channels + 2 * border;
            continue;
        }
        const uint8_t *from = input + y * width * step;
        memset(to, layer->zero_point, (size_t)border);
        to += border;
        if (step == channels)
            memcpy(to, from, (size_t)(width * channels));
        else
            copy(width, channels, step, channels, from, to);
        to += width * channels;
        memset(to, layer->zero_point, (size_t)border);
        to += border;
    }
}

/* All output channels of one group, for a few pixels that lie side by side in the output. */
static void compute_pixels(const Convolution *layer, int group, const Windows *windows, uint8_t *output)
{
    int32_t sums[PIXELS][LANES];
    const int depth = windows->rows * windows->length;
    const int8_t *weights = layer->weights + (group * layer->out_channels * depth >> layer->packed);
    for (int c = 0; c < layer->out_channels; c += LANES) {
        const int channel = group * layer->out_channels + c;
        const int width = layer->out_channels - c < LANES ? layer->out_channels - c : LANES;
        multiply(windows, weights, layer->packed, layer->bias + channel, width, sums);
        finish(layer, channel, width, windows->count, sums, output + channel);
        weights += depth * width >> layer->packed;
    }
}

/* The windows of "pixels" outputs, "across" in a row, whose first byte is at "start". */
static void compute_band(const Convolution *layer, int group, const uint8_t *start, int pixels, int across, int pitch,
                         int step, uint8_t *output)
{
    Windows windows = {.rows = layer->size, .pitch = pitch, .length = (layer->size * layer->in_channels + 3) & ~3};
    int x = 0;
    for (int done = 0; done < pixels; done += windows.count) {
        for (windows.count = 0; windows.count < PIXELS && done + windows.count < pixels; windows.count++) {
            windows.start[windows.count] = start + x * step;
            if (++x == across) {
                x = 0;
                start += layer->stride * pitch;
            }
        }
        compute_pixels(layer, group, &windows, output);
        output += windows.count * layer->out_step;
    }
}

static void convolve(const Convolution *layer, const uint8_t *input, uint8_t *output)
{
    const int pitch = (layer->in_width + 2 * layer->padding) * layer->in_channels;
    for (int group = 0; group < layer->groups; group++, input += layer->in_channels) {
        if (!layer->band) {
            const int pixels = layer->out_height * layer->out_width;
            compute_band(layer, group, input, pixels, pixels, 0, layer->in_step, output);
            continue;
        }
        for (int y = 0; y < layer->out_height; y += layer->band) {
            const int rows = layer->out_height - y < layer->band ? layer->out_height - y : layer->band;
            copy_rows(layer, input, y * layer->stride - layer->padding, (rows - 1) * layer->stride + layer->size);
            compute_band(layer, group, border_rows, rows * layer->out_width, layer->out_width, pitch,
                         layer->stride * layer->in_channels, output + y * layer->out_width * layer->out_step);
        }
    }
}

static inline void add(const Sum *layer, const uint8_t *first, const uint8_t *second, uint8_t *output)
{
    for (int p = 0; p < layer->pixels; p++) {
        for (int c = 0; c < layer->channels; c++) {
            const int sum = first[c] + second[c] - layer->zero_point;
            output[c] = (uint8_t)(sum < 0 ? 0 : sum > layer->highest ? layer->highest : sum);
        }
        first += layer->first_step;
        second += layer->second_step;
        output += layer->out_step;
    }
}

static inline void average(const Average *layer, const uint8_t *input, uint8_t *output)
{
    for (int c = 0; c < layer->channels; c++) {
        int32_t sum = 0;
        for (int p = 0; p < layer->pixels; p++)
            sum += input[p * layer->in_step + c] - layer->zero_point;
        const int64_t scaled = sum * layer->numerator;
        int64_t mean = scaled / layer->denominator, rest = scaled % layer->denominator;
        if (rest < 0) { /* C rounds towards zero; we need the integer below */
            mean--;
            rest += layer->denominator;
        }
        if (2 * rest > layer->denominator || (2 * rest == layer->denominator && mean % 2))
            mean++;
        mean += layer->new_zero_point;
        output[c] = (uint8_t)(mean < 0 ? 0 : mean > layer->highest ? layer->highest : mean);
    }
}

/* The sums of the last layer, moved to one scale; returns the place of the largest. */
static int classify(const Convolution *layer, const int32_t *factor, const uint8_t *input, int64_t *logits)
{
    int32_t sums[PIXELS][LANES];
    int best = 0;
    Windows windows = {.count = 1, .rows = 1, .length = (layer->in_channels + 3) & ~3, .start = {input}};
    const int8_t *weights = layer->weights;
    for (int c = 0; c < layer->out_channels; c += LANES) {
        const int width = layer->out_channels - c < LANES ? layer->out_channels - c : LANES;
        multiply(&windows, weights, layer->packed, layer->bias + c, width, sums);
        for (int i = 0; i < width; i++)
            logits[c + i] = (int64_t)sums[0][i] * factor[c + i];
        weights += windows.length * width >> layer->packed;
    }
    for (int c = 1; c < layer->out_channels; c++)
        if (logits[c] > logits[best])
            best = c;
    return best;
}
