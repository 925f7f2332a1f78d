# Compiles the CUDA kernels for all devices into a fatbin that the library carries (image.c).
#
# nvcc is taken from, in this order: -DENDOR_NVCC=..., the PATH, the package nvidia-cuda-nvcc of the Python that builds. Without one the
# library is built all the same, and says that it has no kernels. -DENDOR_CUDA_ARCHITECTURES="90;120": for these alone.
option(ENDOR_CUDA "Compile the CUDA kernels, where there is an nvcc" ON)
set(ENDOR_CUDA_ARCHITECTURES "75;80;86;87;89;90;100;103;120" CACHE STRING "Compute capabilities to compile for")

set(ENDOR_CUDA_IMAGE)
if(ENDOR_CUDA AND CMAKE_SYSTEM_NAME STREQUAL "Linux" AND NOT CMAKE_CROSSCOMPILING)
  if(SKBUILD)
    # Before the module that is built here is looked for: this one is only asked where its packages are.
    find_package(Python COMPONENTS Interpreter QUIET)
    execute_process(COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/nvcc.py"
      OUTPUT_VARIABLE packaged OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  find_program(ENDOR_NVCC nvcc HINTS "${packaged}" PATHS /usr/local/cuda/bin)
endif()
if(ENDOR_NVCC)
  # Those that this nvcc knows: older and newer ones know others.
  execute_process(COMMAND "${ENDOR_NVCC}" --list-gpu-arch OUTPUT_VARIABLE known RESULT_VARIABLE bad ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+" known "${known}")
  set(codes)
  foreach(architecture IN LISTS ENDOR_CUDA_ARCHITECTURES)
    if(architecture IN_LIST known)
      list(APPEND codes -gencode "arch=compute_${architecture},code=sm_${architecture}")
      set(newest ${architecture})
      if(NOT oldest)
        set(oldest ${architecture})
      endif()
    endif()
  endforeach()
  if(NOT bad AND codes)
    # And as PTX, which the driver compiles for devices that are not among them.
    list(APPEND codes -gencode "arch=compute_${oldest},code=compute_${oldest}")
    if(NOT newest STREQUAL oldest)
      list(APPEND codes -gencode "arch=compute_${newest},code=compute_${newest}")
    endif()
    set(ENDOR_CUDA_IMAGE "${CMAKE_CURRENT_BINARY_DIR}/endor.fatbin")
    set(ENDOR_CUDA_REPORT "${CMAKE_CURRENT_BINARY_DIR}/endor.fatbin.txt")
    file(GLOB kernels CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/*.cuh" "${CMAKE_CURRENT_LIST_DIR}/table.h")
    add_custom_command(OUTPUT "${ENDOR_CUDA_IMAGE}"
      COMMAND "${CMAKE_COMMAND}" "-DNVCC=${ENDOR_NVCC}" "-DCODES=${codes}" "-DOUTPUT=${ENDOR_CUDA_IMAGE}"
        "-DREPORT=${ENDOR_CUDA_REPORT}" -P "${CMAKE_CURRENT_LIST_DIR}/compile.cmake"
      DEPENDS "${CMAKE_CURRENT_LIST_DIR}/kernels.cu" ${kernels} "${CMAKE_CURRENT_LIST_DIR}/compile.cmake"
        native/include/endor.h native/include/endor_cuda.h
      COMMENT "CUDA kernels by ${ENDOR_NVCC}" VERBATIM)
    add_custom_target(endor_fatbin DEPENDS "${ENDOR_CUDA_IMAGE}")
  endif()
endif()
if(NOT ENDOR_CUDA_IMAGE)
  message(STATUS "no nvcc: the library has no CUDA kernels")
endif()

function(endor_cuda_image target)
  if(ENDOR_CUDA_IMAGE)
    add_dependencies(${target} endor_fatbin)
    set_property(SOURCE native/cuda/image.c APPEND PROPERTY OBJECT_DEPENDS "${ENDOR_CUDA_IMAGE}")
    set_property(SOURCE native/cuda/image.c PROPERTY COMPILE_DEFINITIONS "ENDOR_CUDA_IMAGE=\"${ENDOR_CUDA_IMAGE}\"")
  endif()
endfunction()
