"""Write the page of the transforms: their formulas, where their code is, and how they are kept in files."""

from __future__ import annotations

from dataclasses import dataclass

from registries import section

from popatlas.registry import Entry


@dataclass(frozen=True, kw_only=True)
class Transform(Entry):
    """A kind of transform; there is no registry of them, since no configuration names one.

    Attributes
    ----------
    meaning : str
        What its formula says.
    inverse : str
        How it is inverted.
    files : str
        How it is kept.
    """

    meaning: str
    inverse: str
    files: str


FIELD_FILE = (
    "an ITK displacement field, `.nii.gz`: vectors in LPS millimetres, five axes (x, y, z, 1, 3) and the intent `vector` in "
    "NIfTI; `popatlas.transforms.itk.write_displacement` and `read_displacement` change voxels into millimetres and back"
)
TRANSFORMS: dict[str, Transform] = {
    "linear": Transform(
        code="popatlas.transforms.linear:matrix",
        title="translation, rigid, similarity and affine",
        formula=r"x \mapsto R \exp(S)\, (x - c) + c + t",
        meaning="$t$ is a shift in millimetres, $R$ the rotation of a vector in radians, $S$ a symmetric matrix of "
        "log-scales and log-shears, $c$ the centre. A translation, a rigid transform, a similarity and an affine have 3, "
        "6, 7 and 12 parameters in 3D, and 2, 3, 4 and 6 in 2D. Each matrix without reflection has parameters, and all "
        "parameters give a matrix that can be inverted.",
        inverse="The inverse matrix.",
        files="an ITK transform of one linear map, `.mat` (binary), `.txt` or `.tfm`, LPS millimetres: "
        "`popatlas.transforms.itk.write_affine`, `popatlas.transforms.affine.read_affine`. The centre of rotation is folded "
        "into the translation when it is read",
    ),
    "displacement": Transform(
        code="popatlas.transforms.fields:compose",
        title="dense displacement",
        formula=r"x \mapsto x + u(x), \qquad (u_1 \text{, then } u_2)(x) = u_1(x) + u_2\big(x + u_1(x)\big)",
        meaning="A vector $u(x)$ at each voxel, linear between voxels. Two displacements are composed, not added: the "
        "second one is read where the first one leads.",
        inverse="`popatlas.transforms.fields.invert`: for each point the $v$ with $v + u(x + v) = 0$, by a damped "
        "fixed-point iteration (Chen et al. 2008).",
        files=FIELD_FILE,
    ),
    "velocity": Transform(
        code="popatlas.transforms.velocity:integrate_stationary",
        title="flow of a stationary velocity",
        formula=r"\phi = \exp(v) \approx \underbrace{(\mathrm{id} + v / 2^n) \circ \dots \circ (\mathrm{id} + v / 2^n)}"
        r"_{2^n}",
        meaning="The way that points take in one unit of time when each moves by the velocity $v$ of where it is. It is "
        "computed by scaling and squaring (Arsigny et al. 2006): a $2^n$-th of the velocity is taken for a displacement, "
        "which is composed with itself $n$ times.",
        inverse="The flow of $-v$.",
        files="as the displacement of the flow; velocities themselves are not written",
    ),
    "velocities": Transform(
        code="popatlas.transforms.velocity:integrate_time_varying",
        title="flow of velocities that change with time",
        formula=r"u_0 = 0, \qquad u_t(x) = u_{t-1}(x) + v_t\big(x + u_{t-1}(x)\big)",
        meaning="The velocity is read where the point has come to. Each $v_t$ is already multiplied by its time step. The "
        "engine `lddmm` finds them: their energy is $\\|L v_t\\|^2$ with $L = (1 - \\alpha \\Delta)^2$ "
        "(`popatlas.regularisers.sobolev`).",
        inverse="The flow back through $-v_t$, the last one first (`popatlas.transforms.velocity.inverse_time_varying`).",
        files="as the displacement of the flow",
    ),
    "ffd": Transform(
        code="popatlas.transforms.ffd:dense_from_control",
        title="free-form deformation by control points",
        references=("rueckert1999",),
        formula=r"u(x) = \sum_i c_i \prod_d \beta\Big(\frac{x_d}{h_d} - i_d\Big)",
        meaning=r"$c_i$ are the displacements of the control points, which lie at the voxels $i_d h_d$, one of them before "
        r"the image ($i_d = -1$), and $\beta$ is the cubic B-spline, or the hat function of linear interpolation.",
        inverse="That of its displacement.",
        files="as the displacement at each voxel; control points are not written",
    ),
    "chain": Transform(
        code="popatlas.transforms.chain:Chain",
        title="one transform after the other",
        formula=r"x \mapsto T_n\big(\dots T_2(T_1(x))\big)",
        meaning="Steps in the order in which a point of the fixed image goes through them. Matrices are multiplied before "
        "they touch a point, points stay in voxels between fields, and an image is interpolated once, however long "
        "the chain is.",
        inverse="The inverses of the steps, the last one first.",
        files="each step in its own file, or the whole as one displacement field (`Chain.as_field`)",
    ),
}
HEAD = """# Transforms

Each maps a point $x$ of the **fixed** image to a point of the **moving** image, so that the moving image is read where the
fixed grid needs it. Displacements $u$ and velocities $v$ are in voxels of their own grid in memory, and in LPS millimetres
in files; matrices are in LPS millimetres everywhere ([Frames and units](../developers/frames.md)).
"""


def transforms() -> str:
    """Return the page of the transforms."""
    lines = [HEAD]
    for name, entry in TRANSFORMS.items():
        lines += section(name, entry, entry.meaning)
        lines.append(f"**Inverse.** {entry.inverse}\n")
        lines.append(f"**In files.** {entry.files[0].upper()}{entry.files[1:]}.\n")
    return "\n".join(lines)
