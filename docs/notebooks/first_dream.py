# %% [markdown]
# # first_dream
# text

# %%
x = 1
